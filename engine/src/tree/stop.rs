//! The tree's end: a failed sync may have lost data under us, so nothing is written after it \[I3\].
//!
//! Owns: the one call of the fatal hook and the refusal ever after. Never: retries.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::env::FatalHook;
use crate::error::{Error, Result};

/// See the module. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Stop {
    why: Arc<OnceLock<String>>,
    hook: FatalHook,
}

impl Stop {
    pub(crate) fn new(hook: FatalHook) -> Self {
        Self { why: Arc::default(), hook }
    }

    pub(crate) fn check(&self) -> Result<()> {
        self.why.get().map_or(Ok(()), |why| Err(Error::Stopped(why.clone())))
    }

    /// Ends the tree; the first caller also calls the hook.
    pub(crate) fn fatal(&self, action: &str, path: &Path, e: &std::io::Error) -> Error {
        let why = format!("cannot {action} {}: {e}", path.display());
        if self.why.set(why.clone()).is_ok() {
            (self.hook)(&why);
        }
        Error::Stopped(self.why.get().cloned().unwrap_or(why))
    }
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stop").field(&self.why.get()).finish()
    }
}
