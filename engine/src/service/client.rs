//! What users of a service hold.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::beside::beside;
use super::metrics;
use super::places::Places;
use super::worker::{Change, Command, Message, Submission};
use super::{ServiceLoad, ServiceOptions};
use crate::adapter::Adapter;
use crate::engine::{Engine, Preparer, Ready, read_adapters};
use crate::error::{Error, Result};
use crate::generation::{Control, Event, Finish, Generation};
use crate::model::Spec;
use crate::request::{AdapterId, Request};
use crate::tokenizer::Tokenizer;

/// A handle on a [`super::Service`]: cheap to clone, for any number of threads. A callback of [`Self::submit_with`] runs on
/// the thread that answers: what waits for an answer ([`Self::generate`], changes of adapters, [`Tokens::wait`]) waits for
/// ever there.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

struct Shared {
    spec: Spec,
    tokenizer: Option<Arc<Tokenizer>>,
    preparer: Preparer,
    places: Places,
    tickets: AtomicU64,
    load: Arc<Mutex<ServiceLoad>>,
}

/// A token as it comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Path of the request.
    pub path: u32,
    /// The token.
    pub token: u32,
    /// Its log-probability; 0 in a closing prompt.
    pub logprob: f32,
    /// New text, whole characters only; may be empty.
    pub text: String,
    /// Why the path ends with this token, if it does.
    pub finish: Option<Finish>,
}

impl Client {
    pub(super) fn new(engine: &Engine, options: ServiceOptions, commands: mpsc::Sender<Command>) -> Self {
        let shared = Shared {
            spec: engine.spec().clone(),
            tokenizer: engine.shared_tokenizer(),
            preparer: engine.preparer(),
            places: Places::new(options.queue),
            tickets: AtomicU64::new(0),
            load: Arc::default(),
        };
        Self { shared: Arc::new(shared), commands }
    }

    /// Submits a request. Its tokens come through the iterator; dropping that cancels the request. What is wrong with
    /// the request is told by [`Tokens::wait`].
    ///
    /// # Errors
    /// [`Error::Busy`] when the queue is full, [`Error::Stopped`] when the service has ended.
    pub fn submit(&self, request: Request) -> Result<Tokens> {
        self.submit_within(request, Duration::ZERO)
    }

    /// [`Self::submit`] that waits for a place in the queue, at most so long.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_within(&self, request: Request, patience: Duration) -> Result<Tokens> {
        self.place(request, None, patience)
    }

    /// Submits a request whose tokens go to a callback on the engine's thread (be quick there: everybody waits), which
    /// can also stop a path or switch its adapter. If it panics, its request fails, and no other notices.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn submit_with(
        &self,
        request: Request,
        callback: impl FnMut(&Event<'_>) -> Control + Send + 'static,
    ) -> Result<Tokens> {
        self.place(request, Some(Callback::new(callback)), Duration::ZERO)
    }

    /// Runs a request to its end.
    ///
    /// # Errors
    /// As [`Self::submit`] and [`Tokens::wait`].
    pub fn generate(&self, request: Request) -> Result<Generation> {
        self.submit(request)?.wait()
    }

    fn place(&self, request: Request, callback: Option<Callback>, patience: Duration) -> Result<Tokens> {
        let at = Instant::now();
        let place = self.shared.places.take(patience).inspect_err(|_| metrics::busy())?;
        let ticket = self.shared.tickets.fetch_add(1, Ordering::Relaxed);
        let (sender, messages) = mpsc::channel();
        self.send(Command::Submit(Box::new(Submission { ticket, request, callback, sender, place, at })))?;
        let (commands, cancelled) = (self.commands.clone(), Cell::new(false));
        Ok(Tokens { ticket, messages, commands, cancelled, result: None })
    }

    /// Reads an unmodified PEFT directory, while this thread waits, and hands it to the engine between two steps.
    ///
    /// # Errors
    /// What is wrong with the adapter, or [`Error::Stopped`].
    pub fn load_adapter(&self, dir: impl AsRef<Path>, scale: f32) -> Result<AdapterId> {
        let dir = dir.as_ref();
        self.add(|| read_adapters(&[(dir, scale)], &self.shared.spec))
    }

    /// Adds an adapter that is in memory already. It is read and laid out on a thread that gives way to the
    /// engine's: those who run wait only for its way into a slot, and, where there is no slot for one more, for everything
    /// to be made anew.
    ///
    /// # Errors
    /// As [`Self::load_adapter`].
    pub fn add_adapter(&self, adapter: Adapter) -> Result<AdapterId> {
        self.add(|| Ok(adapter))
    }

    /// Puts another adapter under an id. Requests that were taken before go on with what they began with.
    ///
    /// # Errors
    /// As [`Self::load_adapter`], or that no such adapter is loaded.
    pub fn replace_adapter(&self, id: AdapterId, dir: impl AsRef<Path>, scale: f32) -> Result<()> {
        let dir = dir.as_ref();
        self.swap(id, || read_adapters(&[(dir, scale)], &self.shared.spec))
    }

    /// [`Self::replace_adapter`] by one that is in memory already.
    ///
    /// # Errors
    /// As [`Self::replace_adapter`].
    pub fn swap_adapter(&self, id: AdapterId, adapter: Adapter) -> Result<()> {
        self.swap(id, || Ok(adapter))
    }

    /// Forgets an adapter. Requests that were taken before go on with it; then its slot is emptied.
    ///
    /// # Errors
    /// That no such adapter is loaded, or [`Error::Stopped`].
    pub fn remove_adapter(&self, id: AdapterId) -> Result<()> {
        self.ask(|reply| Change::Remove(id, reply))
    }

    /// Text → token ids, here.
    ///
    /// # Errors
    /// Text that cannot be encoded, or a model without a tokenizer.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        crate::engine::encode(self.shared.tokenizer.as_deref(), text)
    }

    /// The model's shape and rules.
    pub fn spec(&self) -> &Spec {
        &self.shared.spec
    }

    /// How much there is to do.
    pub fn load(&self) -> ServiceLoad {
        *self.shared.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shared_load(&self) -> Arc<Mutex<ServiceLoad>> {
        Arc::clone(&self.shared.load)
    }

    fn add(&self, read: impl FnOnce() -> Result<Adapter> + Send) -> Result<AdapterId> {
        let ready = self.ready(read)?;
        self.ask(|reply| Change::Add(ready, reply))
    }

    fn swap(&self, id: AdapterId, read: impl FnOnce() -> Result<Adapter> + Send) -> Result<()> {
        let ready = self.ready(read)?;
        self.ask(|reply| Change::Replace(id, ready, reply))
    }

    /// Does with an adapter what needs no engine.
    fn ready(&self, read: impl FnOnce() -> Result<Adapter> + Send) -> Result<Ready> {
        beside(|| self.shared.preparer.prepare(read()?))?
    }

    fn ask<T>(&self, change: impl FnOnce(mpsc::Sender<Result<T>>) -> Change) -> Result<T> {
        let (reply, answer) = mpsc::channel();
        self.send(Command::Change(Box::new(change(reply))))?;
        answer.recv().map_err(|_| stopped())?
    }

    pub(super) fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).map_err(|_| stopped())
    }
}

/// A callback: whatever in it panics, its destructor too, harms only its own request.
pub(super) struct Callback(Option<Call>);

type Call = Box<dyn FnMut(&Event<'_>) -> Control + Send>;

impl Callback {
    fn new(call: impl FnMut(&Event<'_>) -> Control + Send + 'static) -> Self {
        Self(Some(Box::new(call)))
    }

    /// What it answers; `None` if it panicked.
    pub fn tell(&mut self, event: &Event<'_>) -> Option<Control> {
        let call = self.0.as_mut()?;
        guarded(|| call(event))
    }
}

impl Drop for Callback {
    fn drop(&mut self) {
        let call = self.0.take();
        guarded(|| drop(call));
    }
}

/// What some code of an integrator's gives; `None` if it panicked. What it panicked with is not dropped: that, too, may
/// panic.
fn guarded<T>(theirs: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(theirs)).map_err(std::mem::forget).ok()
}

/// The tokens of a request as they come, of all its paths. Dropping it cancels the request.
pub struct Tokens {
    ticket: u64,
    messages: mpsc::Receiver<Message>,
    commands: mpsc::Sender<Command>,
    /// Whether it has ended, or was asked to.
    cancelled: Cell<bool>,
    result: Option<Result<Generation>>,
}

impl Tokens {
    /// Waits for the end of the request; tokens that were not taken yet are passed over, they are in the result.
    ///
    /// # Errors
    /// What was wrong with the request, what became of the device, or [`Error::Stopped`].
    pub fn wait(mut self) -> Result<Generation> {
        self.by_ref().for_each(drop);
        self.result.take().unwrap_or_else(|| Err(stopped()))
    }

    /// Ends the request within a step; what it has is the result ([`Finish::Cancelled`]).
    pub fn cancel(&self) {
        if !self.cancelled.replace(true) {
            // A service that has ended has cancelled everything.
            let _ = self.commands.send(Command::Cancel(self.ticket));
        }
    }
}

impl Iterator for Tokens {
    type Item = Token;

    /// Waits for the next token; `None` at the end of the request.
    fn next(&mut self) -> Option<Token> {
        if self.result.is_some() {
            return None;
        }
        match self.messages.recv() {
            Ok(Message::Token(token)) => Some(token),
            Ok(Message::Done(result)) => {
                self.cancelled.set(true);
                self.result = Some(result);
                None
            }
            Err(_) => None,
        }
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.cancel();
    }
}

fn stopped() -> Error {
    Error::Stopped("the service has ended".into())
}

#[cfg(test)]
mod tests {
    use std::panic::{panic_any, resume_unwind};

    use super::*;

    /// Panics when it goes, unless something panics already.
    struct Trap;

    impl Drop for Trap {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                // Without the message that a panic prints.
                resume_unwind(Box::new("the destructor's own mistake"));
            }
        }
    }

    fn event() -> Event<'static> {
        Event { request: 0, path: 0, token: 1, logprob: 0.0, text: "", finish: None }
    }

    #[test]
    fn a_panic_of_a_callback_its_payload_or_its_destructor_goes_no_further() {
        let trap = Trap;
        let mut callback = Callback::new(move |_| {
            let _held = &trap;
            Control::Continue
        });
        assert_eq!(callback.tell(&event()), Some(Control::Continue));
        drop(callback);
        let mut callback = Callback::new(|_| resume_unwind(Box::new(Trap)));
        assert_eq!(callback.tell(&event()), None);
        drop(callback);
        assert_eq!(guarded(|| panic_any(1)), None::<()>);
    }
}
