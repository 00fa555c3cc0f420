//! Echo server on tokio: the current-thread scheduler with one worker, the
//! multi-thread scheduler with more.
//!
//! A task per connection with a buffer of its own, `read_buf` then
//! `write_all`:
//! the form of tokio's own echo example.

use std::io;

use bench_peers::{Handler, Options, listen_and_announce, pause_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

fn main() -> io::Result<()> {
    let options = Options::from_arguments();
    let runtime = if options.workers == 1 {
        Builder::new_current_thread().enable_all().build()?
    } else {
        Builder::new_multi_thread().worker_threads(options.workers).enable_all().build()?
    };
    let listener = listen_and_announce(&options)?;
    let accept = async move { accept_loop(TcpListener::from_std(listener)?, &options).await };
    if runtime.metrics().num_workers() == 1 {
        runtime.block_on(accept)
    } else {
        // A future given to `block_on` runs outside the workers; spawned, the
        // accept loop is one of their tasks.
        runtime.block_on(async { tokio::spawn(accept).await? })
    }
}

async fn accept_loop(listener: TcpListener, options: &Options) -> io::Result<()> {
    let (handler, buffer_bytes) = (options.handler(), options.buffer_bytes);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A reset ends the connection, not the server.
                tokio::spawn(async move {
                    let _ = echo(stream, handler, buffer_bytes).await;
                });
            }
            Err(error) => {
                if let Some(pause) = pause_for(&error) {
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

async fn echo(mut stream: TcpStream, handler: Handler, buffer_bytes: usize) -> io::Result<()> {
    // Not zeroed: an idle connection touches no more of it than it received.
    let mut buffer = Vec::with_capacity(buffer_bytes);
    loop {
        buffer.clear();
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        handler.handle(&buffer);
        stream.write_all(&buffer).await?;
    }
}
