//! How many descriptors the process may have: one for each session, and a few.

/// Raises the limit on descriptors to what the system lets the process have.
///
/// The soft limit is commonly 1,024, for programs that use `select`; the hard one is the real one.
#[cfg(unix)]
pub(crate) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the descriptor limit stays at {:?}", limit.current);
    }
}

/// Elsewhere there is no such limit.
#[cfg(not(unix))]
pub(crate) fn raise_descriptor_limit() {}
