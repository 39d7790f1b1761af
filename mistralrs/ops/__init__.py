"""Operations: backends, the weights and buffers that they compute with, and the workspace of a step.

Responsible for the code that computes, in C++ or in torch. Never deals with architectures, files or requests.
"""
