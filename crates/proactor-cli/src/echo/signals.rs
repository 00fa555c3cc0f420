//! SIGINT and SIGTERM: the first begins the drain, the second ends the program at once.
//!
//! A signal handler may do next to nothing, so it writes one byte to a socket pair. A thread reads
//! it, and posts a packet to the port: to the workers, a signal is one more completion.

#[cfg(unix)]
pub(crate) use unix::SignalWatch;

#[cfg(unix)]
mod unix {
    use std::io::{self, Read};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::thread::{self, JoinHandle};

    use signal_hook::SigId;
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::low_level::{pipe, unregister};

    /// What the shell gives for a program that a signal ended, for SIGINT.
    const EXIT_AT_ONCE: i32 = 130;

    /// Watches for signals until it is dropped.
    #[derive(Debug)]
    pub(crate) struct SignalWatch {
        registrations: Vec<SigId>,
        socket: UnixStream,
        thread: Option<JoinHandle<()>>,
    }

    impl SignalWatch {
        /// Calls `first` at the first signal.
        pub(crate) fn start(first: impl FnOnce() + Send + 'static) -> io::Result<Self> {
            let (mut reader, writer) = UnixStream::pair()?;
            let socket = reader.try_clone()?;
            let thread = thread::Builder::new().name("echo-signals".into()).spawn(move || {
                if wait_for_signal(&mut reader) {
                    first();
                }
                if wait_for_signal(&mut reader) {
                    eprintln!("proactor: a second signal: ending at once, without totals");
                    std::process::exit(EXIT_AT_ONCE);
                }
            })?;
            let registrations = vec![
                pipe::register(SIGINT, writer.try_clone()?)?,
                pipe::register(SIGTERM, writer)?,
            ];
            Ok(Self { registrations, socket, thread: Some(thread) })
        }
    }

    impl Drop for SignalWatch {
        fn drop(&mut self) {
            // This ends the thread's wait; where it has gone by itself there is nothing to end.
            let _ = self.socket.shutdown(Shutdown::Both);
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
            for registration in self.registrations.drain(..) {
                unregister(registration);
            }
        }
    }

    /// Waits for a byte; `false` where the watch is over.
    fn wait_for_signal(reader: &mut UnixStream) -> bool {
        reader.read_exact(&mut [0]).is_ok()
    }
}

/// Where there are no signals, Ctrl-C ends the program, without a drain.
#[cfg(not(unix))]
#[derive(Debug)]
pub(crate) struct SignalWatch;

#[cfg(not(unix))]
impl SignalWatch {
    /// Does nothing.
    pub(crate) fn start(_first: impl FnOnce() + Send + 'static) -> std::io::Result<Self> {
        Ok(Self)
    }
}
