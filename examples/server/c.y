/* C, as far as a model's answer needs it: declarations, types of one's own, functions, statements, expressions.
 *
 * The grammar has no table of names, so that a name of a type is one that ends in _t. */
%start program

%nonassoc WITHOUT_ELSE
%nonassoc 'else'

%%

program: external | program external ;

external: function | declaration ;

function: specifiers declarator block ;

/* Declarations */

declaration
    : specifiers ';' | specifiers variables ';'
    | 'typedef' specifiers declarator ';'
    | 'typedef' specifiers TYPE_NAME ';' | 'typedef' specifiers pointer TYPE_NAME ';'
    ;

variables: variable | variables ',' variable ;

variable: declarator | declarator '=' initializer ;

initializer: assignment | '{' initializers '}' | '{' initializers ',' '}' ;

initializers: initializer | initializers ',' initializer ;

specifiers: specifier | specifiers specifier ;

specifier
    : 'static' | 'extern' | 'inline' | 'const' | 'volatile'
    | 'void' | 'char' | 'short' | 'int' | 'long' | 'float' | 'double' | 'signed' | 'unsigned'
    | TYPE_NAME | record | enumeration
    ;

record: record_kind IDENTIFIER | record_kind '{' members '}' | record_kind IDENTIFIER '{' members '}' ;

record_kind: 'struct' | 'union' ;

members: member | members member ;

member: specifiers declarators ';' ;

declarators: declarator | declarators ',' declarator ;

enumeration: 'enum' IDENTIFIER | 'enum' '{' constants '}' | 'enum' IDENTIFIER '{' constants '}' ;

constants: constant | constants ',' constant ;

constant: IDENTIFIER | IDENTIFIER '=' conditional ;

declarator: direct | '*' declarator | '*' 'const' declarator ;

direct
    : IDENTIFIER
    | '(' declarator ')'
    | direct '[' ']' | direct '[' conditional ']'
    | direct '(' ')' | direct '(' parameters ')' | direct '(' parameters ',' '...' ')'
    ;

parameters: parameter | parameters ',' parameter ;

parameter: specifiers | specifiers declarator | specifiers pointer ;

pointer: '*' | '*' pointer ;

type: specifiers | specifiers pointer ;

/* Statements */

block: '{' '}' | '{' items '}' ;

items: item | items item ;

item: declaration | statement ;

statement
    : block
    | ';' | expression ';'
    | 'if' '(' expression ')' statement %prec WITHOUT_ELSE
    | 'if' '(' expression ')' statement 'else' statement
    | 'switch' '(' expression ')' statement
    | 'case' conditional ':' statement | 'default' ':' statement
    | 'while' '(' expression ')' statement
    | 'do' statement 'while' '(' expression ')' ';'
    | 'for' '(' first maybe ';' maybe ')' statement
    | 'break' ';' | 'continue' ';' | 'return' ';' | 'return' expression ';'
    | 'goto' IDENTIFIER ';' | IDENTIFIER ':' statement
    ;

first: ';' | expression ';' | declaration ;

maybe: %empty | expression ;

/* Expressions, from the loosest to the tightest */

expression: assignment | expression ',' assignment ;

assignment: conditional | unary assigns assignment ;

assigns: '=' | '*=' | '/=' | '%=' | '+=' | '-=' | '<<=' | '>>=' | '&=' | '^=' | '|=' ;

conditional: disjunction | disjunction '?' expression ':' conditional ;

disjunction: conjunction | disjunction '||' conjunction ;

conjunction: bits_or | conjunction '&&' bits_or ;

bits_or: bits_xor | bits_or '|' bits_xor ;

bits_xor: bits_and | bits_xor '^' bits_and ;

bits_and: equality | bits_and '&' equality ;

equality: comparison | equality '==' comparison | equality '!=' comparison ;

comparison: shift | comparison '<' shift | comparison '>' shift | comparison '<=' shift | comparison '>=' shift ;

shift: sum | shift '<<' sum | shift '>>' sum ;

sum: product | sum '+' product | sum '-' product ;

product: cast | product '*' cast | product '/' cast | product '%' cast ;

cast: unary | '(' type ')' cast ;

unary
    : postfix
    | '++' unary | '--' unary
    | '&' cast | '*' cast | '+' cast | '-' cast | '~' cast | '!' cast
    | 'sizeof' unary | 'sizeof' '(' type ')'
    ;

postfix
    : primary
    | postfix '[' expression ']'
    | postfix '(' ')' | postfix '(' arguments ')'
    | postfix '.' IDENTIFIER | postfix '->' IDENTIFIER
    | postfix '++' | postfix '--'
    ;

arguments: assignment | arguments ',' assignment ;

primary: IDENTIFIER | CONSTANT | strings | '(' expression ')' ;

strings: STRING | strings STRING ;

/* Tokens. Of two that match the same text, the one with the longer pattern is meant. */

IDENTIFIER: "/[a-zA-Z_][a-zA-Z_0-9]*/" ;

TYPE_NAME: "/[a-zA-Z_][a-zA-Z_0-9]*_t/" | 'FILE' | 'bool' ;

CONSTANT
    : "/0[xX][0-9a-fA-F]+[uUlL]*/"
    | "/[0-9]+[uUlL]*/"
    | "/[0-9]+\.[0-9]*([eE][+-]?[0-9]+)?[fFlL]?/"
    | "/[0-9]+[eE][+-]?[0-9]+[fFlL]?/"
    | "/\.[0-9]+([eE][+-]?[0-9]+)?[fFlL]?/"
    | "/'(\\[^\n]|[^\\'\n])'/"
    ;

STRING: '/"(\\[^\n]|[^\\"\n])*"/' ;

/* White space, comments and lines of the preprocessor may stand between any two tokens. */

SKIP
    : "/[ \t\r\n]+/"
    | "/\/\*([^*]|\*+[^*\/])*\*+\//"
    | "/\/\/[^\n]*/"
    | "/#[^\n]*/"
    ;
