//! Completion routines, and what they are told.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use super::ApcQueue;
use crate::port::Completion;

/// What a routine is made of. The cell is borrowed exactly while the routine runs.
type Body = RefCell<dyn FnMut(Completed<'_>)>;

/// A completion routine: what is to be done when an operation has ended.
///
/// A clone is the same routine. One routine may be given to any number of operations; it is entered
/// once for each (for a continuous receive, once for each packet), never while it is running.
///
/// While an operation is pending, its routine is kept, with all that it owns. A routine that owns
/// its queue (in an [`Rc`]) keeps both alive for ever: it has the queue from
/// [`Completed::queue`].
#[derive(Clone)]
pub struct Routine {
    body: Rc<Body>,
}

impl Routine {
    /// A routine that may run any number of times.
    pub fn new(body: impl FnMut(Completed<'_>) + 'static) -> Self {
        Self { body: Rc::new(RefCell::new(body)) }
    }

    /// A routine that runs once: what it captures is freed when it has run. Where it is entered
    /// again nothing happens, and the operation is dropped.
    pub fn once(body: impl FnOnce(Completed<'_>) + 'static) -> Self {
        let mut body = Some(body);
        Self::new(move |completed| {
            if let Some(body) = body.take() {
                body(completed);
            }
        })
    }

    /// Runs the routine; gives the packet back where it is running already, further up the stack.
    pub(super) fn run(&self, queue: &ApcQueue, completion: Completion) -> Option<Completion> {
        match self.body.try_borrow_mut() {
            Ok(mut body) => {
                body(Completed { completion, queue, routine: self });
                None
            }
            Err(_) => Some(completion),
        }
    }

    /// Whether both are the same routine.
    pub(super) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.body, &other.body)
    }
}

impl fmt::Debug for Routine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Routine").finish_non_exhaustive()
    }
}

/// What a routine is told (rule 129): the operation's [`Completion`] with the error, the bytes and
/// the operation itself, which is the routine's to keep, to start again, or to drop.
///
/// It dereferences to the [`Completion`]. Its key means nothing here.
#[derive(Debug)]
pub struct Completed<'a> {
    completion: Completion,
    queue: &'a ApcQueue,
    routine: &'a Routine,
}

impl<'a> Completed<'a> {
    /// The queue that the routine runs on: to open what was accepted, or to wait once more.
    pub fn queue(&self) -> &'a ApcQueue {
        self.queue
    }

    /// The running routine, to give it to the next operation.
    pub fn routine(&self) -> &'a Routine {
        self.routine
    }

    /// The completion itself.
    pub fn into_completion(self) -> Completion {
        self.completion
    }
}

impl Deref for Completed<'_> {
    type Target = Completion;

    fn deref(&self) -> &Completion {
        &self.completion
    }
}

impl DerefMut for Completed<'_> {
    fn deref_mut(&mut self) -> &mut Completion {
        &mut self.completion
    }
}
