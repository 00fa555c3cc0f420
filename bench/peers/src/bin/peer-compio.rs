//! Echo server on compio: a runtime per worker thread, each with an io_uring
//! and a listening socket of its own.
//!
//! A task per connection whose one buffer travels from `read` to `write_all`
//! and back, so that no message allocates.

use std::io;
use std::net::TcpListener as StdListener;

use bench_peers::{Handler, Options, pause_for, serve_per_worker};
use compio::buf::{IntoInner, IoBuf};
use compio::driver::ProactorBuilder;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::RuntimeBuilder;

fn main() -> io::Result<()> {
    let options = Options::from_arguments();
    let per_worker = options.clone();
    serve_per_worker(&options, move |listener| serve(listener, &per_worker))
}

fn serve(listener: StdListener, options: &Options) -> io::Result<()> {
    let mut proactor = ProactorBuilder::new();
    // Without these, every completion interrupts the thread.
    proactor.capacity(4096).single_issuer(true).defer_taskrun(true).taskrun_flag(true);
    let runtime = RuntimeBuilder::new().with_proactor(proactor).build()?;
    runtime.block_on(accept_loop(listener, options))
}

async fn accept_loop(listener: StdListener, options: &Options) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let (handler, buffer_bytes) = (options.handler(), options.buffer_bytes);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A reset ends the connection, not the server.
                compio::runtime::spawn(async move {
                    let _ = echo(stream, handler, buffer_bytes).await;
                })
                .detach();
            }
            Err(error) => {
                if let Some(pause) = pause_for(&error) {
                    std::thread::sleep(pause);
                }
            }
        }
    }
}

async fn echo(mut stream: TcpStream, handler: Handler, buffer_bytes: usize) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(buffer_bytes);
    loop {
        buffer.clear();
        let (read, returned) = stream.read(buffer).await.into();
        let length = read?;
        if length == 0 {
            return Ok(());
        }
        handler.handle(&returned[..length]);
        let (written, slice) = stream.write_all(returned.slice(..length)).await.into();
        written?;
        buffer = slice.into_inner();
    }
}
