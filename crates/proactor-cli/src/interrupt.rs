//! What asks a program to end: Ctrl-C, SIGTERM, and on Windows Ctrl-Break and the end of the
//! console, the session or the system.

pub(crate) use system::Watch;

#[cfg(unix)]
mod system {
    use std::io::{self, Read};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::thread::{self, JoinHandle};

    use signal_hook::SigId;
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::low_level::{pipe, unregister};

    /// Watches until it is dropped.
    ///
    /// A signal handler may do next to nothing, so it writes one byte to a socket pair, which a
    /// thread reads.
    #[derive(Debug)]
    pub(crate) struct Watch {
        registrations: Vec<SigId>,
        socket: UnixStream,
        thread: Option<JoinHandle<()>>,
    }

    impl Watch {
        /// Calls `on_each` at each signal, on a thread of its own.
        pub(crate) fn start(mut on_each: impl FnMut() + Send + 'static) -> io::Result<Self> {
            let (mut reader, writer) = UnixStream::pair()?;
            let socket = reader.try_clone()?;
            let thread = thread::Builder::new().name("signals".into()).spawn(move || {
                // It fails where the watch is over.
                while reader.read_exact(&mut [0]).is_ok() {
                    on_each();
                }
            })?;
            let registrations = vec![
                pipe::register(SIGINT, writer.try_clone()?)?,
                pipe::register(SIGTERM, writer)?,
            ];
            Ok(Self { registrations, socket, thread: Some(thread) })
        }
    }

    impl Drop for Watch {
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
}

#[cfg(windows)]
mod system {
    use std::io;

    /// Watches to the end of the program.
    #[derive(Debug)]
    pub(crate) struct Watch;

    impl Watch {
        /// Calls `on_each` at each console event, on a thread of its own.
        pub(crate) fn start(on_each: impl FnMut() + Send + 'static) -> io::Result<Self> {
            ctrlc::set_handler(on_each).map_err(io::Error::other)?;
            Ok(Self)
        }
    }
}
