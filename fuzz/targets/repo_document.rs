//! Fuzz target of the decoder `repo_document`.

#![no_main]

mainstay_fuzz::target!("repo_document");
