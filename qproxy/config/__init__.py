"""From a YAML file to frozen dataclasses, every error with its file, line, key and a hint.

model   the dataclasses and every default; a leaf that everybody may import
node    YAML as a tree with line numbers, bounded against hostile files
schema  how each key is written: a small declarative language and the tables in it
reader  walks the tree by the schema, then checks what one key alone cannot show
"""
