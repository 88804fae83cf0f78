# The C half of signal, imported by hot code for its price (docs/decisions.md); typeshed has no stub for it.
from signal import *
