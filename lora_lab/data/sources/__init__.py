"""One file per kind of data set; each turns what the user has into records (:mod:`lora_lab.data.records`)."""
