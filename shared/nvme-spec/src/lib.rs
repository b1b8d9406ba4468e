//! NVMe wire types: registers, commands, completions, identify structures, log pages, features.
