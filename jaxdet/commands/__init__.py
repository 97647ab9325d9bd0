"""The commands, and what lies between a config and the rest of jaxdet.

schema, declared    what a config may say
renamed             and what it said once
config_files        recipes and saved configs
command_line        flags
ending              how a command ends
lengths             "12 epochs"
opening             from a config to a run, once
splits              the splits of its data
results             what variables find on a source
prediction_files    what a prediction writes
run_model           the model file that a run leaves
job, telling        one training in its folder, and what it prints
train, evaluate     the commands
predict             the one that needs no run, and no more than the extra "predict"
browse, fed_images  what a training is fed
batch_log           which images its batches have
fingerprint         what a run's numbers come from
compare, past_runs  runs side by side
summary, costs      what a detector is made of, and what it costs
memory              and what fits
text_table          aligned columns
"""
