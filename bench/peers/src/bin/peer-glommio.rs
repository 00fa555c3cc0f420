//! Echo server on glommio: an executor per worker thread, each with its rings
//! and a listening socket of its own.
//!
//! An unbuffered stream per connection, `read` then `write_all`.

use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::{FromRawFd, IntoRawFd};

use bench_peers::{Handler, Options, serve_per_worker};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};

fn main() -> io::Result<()> {
    let options = Options::from_arguments();
    let per_worker = options.clone();
    serve_per_worker(&options, move |listener| serve(listener, &per_worker))
}

fn serve(listener: StdListener, options: &Options) -> io::Result<()> {
    let executor = LocalExecutorBuilder::new(Placement::Unbound)
        .ring_depth(4096)
        .make()
        .map_err(|error| io::Error::other(error.to_string()))?;
    executor.run(accept_loop(listener, options))
}

async fn accept_loop(listener: StdListener, options: &Options) -> io::Result<()> {
    // SAFETY: the descriptor is a listening socket that nothing else owns.
    let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
    let (handler, buffer_bytes) = (options.handler(), options.buffer_bytes);
    loop {
        match listener.accept().await {
            Ok(stream) => {
                // A reset ends the connection, not the server.
                glommio::spawn_local(async move {
                    let _ = echo(stream, handler, buffer_bytes).await;
                })
                .detach();
            }
            // Exhausted descriptors, as a rule: do not spin on them.
            Err(_) => glommio::timer::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

async fn echo(mut stream: TcpStream, handler: Handler, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; buffer_bytes];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        handler.handle(&buffer[..length]);
        stream.write_all(&buffer[..length]).await?;
    }
}
