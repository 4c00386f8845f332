//! The environment: the handles through which the engine meets the world, passed at open.
//!
//! Owns: the bundle and the fatal hook. Never: global state.

use std::fmt;
use std::sync::Arc;

use crate::clock::{Clock, OsClock};
use crate::fs::Fs;
use crate::fs::os::OsFs;
use crate::rng::{OsRng, Rng};

/// What happens when data may have been lost under us (a failed sync of the log or manifest): the
/// process must end \[I3\]. Production aborts; tests record.
pub type FatalHook = Arc<dyn Fn(&str) + Send + Sync>;

/// File system, clock, randomness and the fatal hook. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    /// Files.
    pub fs: Arc<dyn Fs>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Random numbers.
    pub rng: Arc<dyn Rng>,
    /// Called once, before the failing call returns its error.
    pub fatal: FatalHook,
}

impl Env {
    /// The real world. A fatal error prints one line to standard error and aborts the process.
    #[must_use]
    pub fn real() -> Self {
        Self {
            fs: Arc::new(OsFs::new()),
            clock: Arc::new(OsClock::new()),
            rng: Arc::new(OsRng),
            fatal: Arc::new(|why| {
                use std::io::Write;
                let _ = writeln!(std::io::stderr(), "fatal: {why}");
                std::process::abort();
            }),
        }
    }
}

/// What the fatal hook of a simulated environment was told, oldest first. Clones share.
#[cfg(feature = "sim")]
#[derive(Clone, Debug, Default)]
pub struct SimFatal(Arc<std::sync::Mutex<Vec<String>>>);

#[cfg(feature = "sim")]
impl SimFatal {
    /// All messages so far.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        self.list().clone()
    }

    /// All messages since the last `take`.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.list())
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(feature = "sim")]
impl Env {
    /// A simulated world on a disk and a clock that the test keeps. A fatal error is recorded
    /// instead of ending the process.
    #[must_use]
    pub fn sim(fs: Arc<crate::fs::sim::SimFs>, clock: Arc<crate::clock::SimClock>, seed: u64) -> (Self, SimFatal) {
        let fatal = SimFatal::default();
        let record = fatal.clone();
        let env = Self {
            fs,
            clock,
            rng: Arc::new(crate::rng::SeededRng::new(seed)),
            fatal: Arc::new(move |why| record.list().push(why.to_owned())),
        };
        (env, fatal)
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Env").field("fs", &self.fs).finish_non_exhaustive()
    }
}
