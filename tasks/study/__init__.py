"""Studies: settings of several schemes compared by one protocol."""
