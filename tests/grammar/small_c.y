/* A part of C: declarations, functions, statements and expressions. */
%start unit
%nonassoc LOWER_THAN_ELSE
%nonassoc 'else'
%%
unit: item | unit item ;
item: function | declaration ;
function: type declarator '(' parameters ')' block | type declarator '(' ')' block ;
parameters: parameter | parameters ',' parameter ;
parameter: type declarator ;
declaration: type initialized ';' | 'struct' IDENTIFIER '{' fields '}' ';' ;
fields: field | fields field ;
field: type declarator ';' ;
initialized: declarator | declarator '=' assignment | initialized ',' declarator ;
declarator: direct | '*' declarator ;
direct: IDENTIFIER | direct '[' CONSTANT ']' ;
type: 'int' | 'char' | 'void' | 'double' | 'unsigned' 'int' | 'const' type | 'struct' IDENTIFIER ;
block: '{' '}' | '{' statements '}' ;
statements: statement | statements statement ;
statement
  : expression ';' | ';' | declaration | block
  | 'return' ';' | 'return' expression ';' | 'break' ';' | 'continue' ';'
  | 'while' '(' expression ')' statement
  | 'do' statement 'while' '(' expression ')' ';'
  | 'for' '(' for_part ';' for_part ';' for_part ')' statement
  | 'if' '(' expression ')' statement %prec LOWER_THAN_ELSE
  | 'if' '(' expression ')' statement 'else' statement
  ;
for_part: %empty | expression ;
expression: assignment | expression ',' assignment ;
assignment: conditional | unary '=' assignment | unary '+=' assignment ;
conditional: disjunction | disjunction '?' expression ':' conditional ;
disjunction: conjunction | disjunction '||' conjunction ;
conjunction: equality | conjunction '&&' equality ;
equality: comparison | equality '==' comparison | equality '!=' comparison ;
comparison: sum | comparison '<' sum | comparison '>' sum | comparison '<=' sum | comparison '>=' sum ;
sum: product | sum '+' product | sum '-' product ;
product: unary | product '*' unary | product '/' unary | product '%' unary ;
unary: postfix | '-' unary | '!' unary | '*' unary | '&' unary | '++' unary | '--' unary | 'sizeof' '(' type ')' ;
postfix
  : primary | postfix '[' expression ']' | postfix '(' ')' | postfix '(' arguments ')'
  | postfix '.' IDENTIFIER | postfix '->' IDENTIFIER | postfix '++' | postfix '--' ;
arguments: assignment | arguments ',' assignment ;
primary: IDENTIFIER | CONSTANT | STRING | '(' expression ')' { $$ = $2; } ;
IDENTIFIER: "/[a-zA-Z_][0-9a-zA-Z_]*/" ;
CONSTANT: "/0[xX][a-fA-F0-9]+/" | "/[0-9]+/" | "/[0-9]+\.[0-9]+/" | "/'(\\.|[^\\'\n])'/" ;
STRING: '/"(\\.|[^\\"\n])*"/' ;
SKIP: "/[ \t\n]+/" | "/\/\*[^*]*\*+([^\/*][^*]*\*+)*\//" | "/\/\/[^\n]*\n/" ;
%%
The rest is a program, which is not read.
