//! Fuzz target of the decoder `log_file_name`.

#![no_main]

mainstay_fuzz::target!("log_file_name");
