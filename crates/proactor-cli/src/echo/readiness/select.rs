//! `poll` and `select` as the books have them: every descriptor at every call.
//!
//! References: poll(2), select(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{
    FdSetElement, FdSetIter, PollFd, PollFlags, Timespec, fd_set_insert, fd_set_num_elements,
};

use super::poller::{Event, Wanted, Watched};

/// `FD_SETSIZE`: `select` knows descriptors below this, however many the process may have.
pub(super) const DESCRIPTORS: usize = 1024;

/// Whether `select` can watch this descriptor.
pub(super) fn can_watch(descriptor: BorrowedFd<'_>) -> bool {
    usize::try_from(descriptor.as_raw_fd()).is_ok_and(|number| number < DESCRIPTORS)
}

/// Waits with `poll`.
pub(super) fn poll<'a>(
    watched: impl Iterator<Item = Watched<'a>>,
    timeout: Option<Duration>,
    ready: &mut Vec<Event>,
) -> io::Result<()> {
    let (mut descriptors, tokens): (Vec<PollFd<'a>>, Vec<usize>) = watched
        .map(|Watched { token, descriptor, wanted }| {
            (PollFd::from_borrowed_fd(descriptor, flags(wanted)), token)
        })
        .unzip();
    rustix::event::poll(&mut descriptors, timespec(timeout).as_ref())?;
    let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    for (descriptor, &token) in descriptors.iter().zip(&tokens) {
        let events = descriptor.revents();
        if !events.is_empty() {
            let is_closed = events.intersects(broken);
            ready.push(Event {
                token,
                readable: events.contains(PollFlags::IN) || is_closed,
                writable: events.contains(PollFlags::OUT) || is_closed,
                is_closed,
            });
        }
    }
    Ok(())
}

fn flags(wanted: Wanted) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, wanted.read);
    flags.set(PollFlags::OUT, wanted.write);
    flags
}

fn timespec(timeout: Option<Duration>) -> Option<Timespec> {
    // A time beyond the clock's range is for ever.
    timeout.and_then(|timeout| Timespec::try_from(timeout).ok())
}

/// The sets of `select`, kept from call to call for their memory.
#[derive(Default)]
pub(super) struct Sets {
    read: Vec<FdSetElement>,
    write: Vec<FdSetElement>,
}

impl std::fmt::Debug for Sets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sets").finish_non_exhaustive()
    }
}

impl Sets {
    /// Waits with `select`. Descriptors that it cannot watch must not be among them.
    pub(super) fn wait<'a>(
        &mut self,
        watched: impl Iterator<Item = Watched<'a>>,
        timeout: Option<Duration>,
        ready: &mut Vec<Event>,
    ) -> io::Result<()> {
        let watched: Vec<Watched<'a>> = watched.collect();
        let highest = watched.iter().map(|source| source.descriptor.as_raw_fd()).max();
        let bound = highest.map_or(0, |highest| highest + 1);
        assert!(bound as usize <= DESCRIPTORS, "accepted descriptors are checked");
        for set in [&mut self.read, &mut self.write] {
            set.clear();
            set.resize(fd_set_num_elements(DESCRIPTORS, bound), FdSetElement::default());
        }
        for source in &watched {
            let number = source.descriptor.as_raw_fd();
            if source.wanted.read {
                fd_set_insert(&mut self.read, number);
            }
            if source.wanted.write {
                fd_set_insert(&mut self.write, number);
            }
        }
        let timeout = timespec(timeout);
        // SAFETY: every descriptor in the sets is borrowed in `watched` for the whole call, and both
        // sets have room for descriptors below `bound`.
        unsafe {
            rustix::event::select(
                bound,
                Some(&mut self.read),
                Some(&mut self.write),
                None,
                timeout.as_ref(),
            )?;
        }
        let mut is_ready = [[false; DESCRIPTORS]; 2];
        for (set, is_ready) in [&self.read, &self.write].into_iter().zip(&mut is_ready) {
            FdSetIter::new(set).for_each(|number| is_ready[number as usize] = true);
        }
        for source in &watched {
            let number = source.descriptor.as_raw_fd();
            let readable = is_ready[0][number as usize];
            let writable = is_ready[1][number as usize];
            if readable || writable {
                let token = source.token;
                ready.push(Event { token, readable, writable, is_closed: false });
            }
        }
        Ok(())
    }
}
