//! The parts of a transfer on their way to the peer that asked for it.
//!
//! Owns: how long the sender waits until the peer takes a part. Never: a transfer that ended early and looks whole to the
//! peer, nor a wait without an end for a peer whose disk hangs.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendTimeoutError;

/// How long a peer may take nothing: longer than a slow disk takes for the sync of a large table.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Parts that wait for the peer.
const WINDOW: usize = 4;

/// What the peer's stream is fed from: parts, and at last perhaps why no more come, in words.
pub(super) type Parts<T> = mpsc::Receiver<Result<T, String>>;

enum Word<T> {
    Part(T),
    Done,
    Failed(String),
}

/// The sender's end, for a thread that may block. Dropped before it is done, it tells the peer that the transfer broke off.
pub(super) struct Outgoing<T>(mpsc::Sender<Word<T>>);

/// Both ends of a transfer whose sender waits so long until the peer takes a part; `taken` is told of each that it took.
pub(super) fn outgoing<T: Send + 'static>(
    patience: Duration,
    taken: impl Fn() + Send + 'static,
) -> (Outgoing<T>, Parts<T>) {
    let (words, said) = mpsc::channel(1);
    let (parts, peer) = mpsc::channel(WINDOW + 1);
    // The word that the transfer failed never waits for the peer.
    let last_word = parts.clone().try_reserve_owned();
    // Not in the sender's thread: a runtime that is shut down drops a task, and its timers end a thread with a panic.
    tokio::spawn(async move {
        if let (Some(why), Ok(room)) = (forward(said, parts, patience, taken).await, last_word) {
            room.send(Err(why));
        }
    });
    (Outgoing(words), peer)
}

/// Why the peer did not get all, for the peer.
async fn forward<T>(
    mut said: mpsc::Receiver<Word<T>>,
    parts: mpsc::Sender<Result<T, String>>,
    patience: Duration,
    taken: impl Fn(),
) -> Option<String> {
    loop {
        match said.recv().await {
            Some(Word::Part(part)) => match parts.send_timeout(Ok(part), patience).await {
                Ok(()) => taken(),
                Err(SendTimeoutError::Closed(_)) => return None,
                Err(SendTimeoutError::Timeout(_)) => {
                    return Some(format!("the receiver took nothing for {patience:?}"));
                }
            },
            Some(Word::Done) => return None,
            Some(Word::Failed(why)) => return Some(why),
            None => return Some("the transfer broke off at the sender".to_owned()),
        }
    }
}

impl<T> Outgoing<T> {
    /// Hands a part on, when there is room. Blocks.
    ///
    /// # Errors
    /// In words, when the peer hung up or takes nothing: then no more is to be sent.
    pub(super) fn hand(&self, part: T) -> Result<(), String> {
        let handed = self.0.blocking_send(Word::Part(part));
        handed.map_err(|_| "the peer hung up, or its disk hangs and it took nothing for long".to_owned())
    }

    /// Ends the transfer: all was handed on, or why not. A peer that hung up does not hear it. Blocks.
    pub(super) fn end(self, ended: Result<(), String>) {
        let word = ended.map_or_else(Word::Failed, |()| Word::Done);
        let _ = self.0.blocking_send(word);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(50);

    /// Hands numbers on until that fails, and says so.
    fn endless(out: Outgoing<u64>) -> String {
        for n in 0.. {
            if let Err(why) = out.hand(n) {
                out.end(Err(why.clone()));
                return why;
            }
        }
        unreachable!("it ends");
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up_and_does_not_hold_the_transfer_for_whole() {
        let took = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&took);
        let (out, mut peer) = outgoing(SHORT, move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let sending = tokio::task::spawn_blocking(move || endless(out));
        let sent = tokio::time::timeout(Duration::from_secs(60), sending).await.expect("held up for ever").unwrap();
        assert!(sent.contains("took nothing"), "{sent}");
        assert_eq!(took.load(Ordering::Relaxed), WINDOW as u64);
        // Its disk is back.
        for n in 0..WINDOW as u64 {
            assert_eq!(peer.recv().await, Some(Ok(n)));
        }
        assert_eq!(peer.recv().await, Some(Err("the receiver took nothing for 50ms".to_owned())));
        assert_eq!(peer.recv().await, None);
    }

    #[tokio::test]
    async fn a_transfer_ends_without_a_word_only_when_all_was_handed_on() {
        for (ended, heard) in [(Ok(()), None), (Err("damaged".to_owned()), Some(Err("damaged".to_owned())))] {
            let (out, mut peer) = outgoing(LONG, || ());
            let sending = tokio::task::spawn_blocking(move || {
                out.hand(7).unwrap();
                out.end(ended);
            });
            assert_eq!((peer.recv().await, peer.recv().await), (Some(Ok(7)), heard));
            sending.await.unwrap();
        }
        let (out, mut peer) = outgoing::<u64>(LONG, || ());
        drop(out);
        assert!(peer.recv().await.unwrap().unwrap_err().contains("broke off"));
        let (out, peer) = outgoing(LONG, || ());
        drop(peer);
        assert!(tokio::task::spawn_blocking(move || endless(out)).await.unwrap().contains("hung up"));
    }
}
