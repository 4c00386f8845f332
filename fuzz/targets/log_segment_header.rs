//! Fuzz target of the decoder `log_segment_header`.

#![no_main]

mainstay_fuzz::target!("log_segment_header");
