"""The commands, and what lies between a config and the rest of jaxdet.

schema, renamed     what a config may say
config_files        recipes and saved configs
command_line        flags, and how a command ends
lengths             "12 epochs"
opening             from a config to a run, once
results             what variables find on a source
train, evaluate     the commands
"""
