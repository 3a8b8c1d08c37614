"""From a YAML file to frozen dataclasses, every error with its file, line, key and a hint.

model     the dataclasses and every default; a leaf that everybody may import; ``network`` those of
          a simulated network
document  YAML as a tree with line numbers, bounded against hostile files
walk      what is known while a tree is gone through; ``scalars`` and ``sections`` how single values
          and whole sections are read
schema    how each key is written: tables of those; ``network_schema`` of a simulated network
checks    what one key alone cannot show; ``source_checks`` for key sources, ``network_checks`` for
          a simulated network
reader    all of it together
"""
