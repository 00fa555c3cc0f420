//! Echo server on monoio: a runtime per worker thread, each with an io_uring
//! and a listening socket of its own.
//!
//! The form of monoio's own echo example: one owned buffer travels from
//! `read` to `write_all` and back.

use std::io;
use std::net::TcpListener as StdListener;

use bench_peers::{Handler, Options, pause_for, serve_per_worker};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};

fn main() -> io::Result<()> {
    let options = Options::from_arguments();
    let per_worker = options.clone();
    serve_per_worker(&options, move |listener| serve(listener, &per_worker))
}

fn serve(listener: StdListener, options: &Options) -> io::Result<()> {
    // Without these, every completion interrupts the thread. DEFER_TASKRUN
    // measured the same.
    let mut ring = io_uring_06::IoUring::builder();
    ring.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    let mut runtime =
        RuntimeBuilder::<IoUringDriver>::new().with_entries(4096).uring_builder(ring).build()?;
    runtime.block_on(accept_loop(listener, options))
}

async fn accept_loop(listener: StdListener, options: &Options) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let (handler, buffer_bytes) = (options.handler(), options.buffer_bytes);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // A reset ends the connection, not the server.
                monoio::spawn(async move {
                    let _ = echo(stream, handler, buffer_bytes).await;
                });
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
    let mut buffer: Vec<u8> = Vec::with_capacity(buffer_bytes);
    loop {
        buffer.clear();
        let (read, returned) = stream.read(buffer).await;
        buffer = returned;
        if read? == 0 {
            return Ok(());
        }
        handler.handle(&buffer);
        // `write_all` of a `Vec` writes its length, which `read` has set.
        let (written, returned) = stream.write_all(buffer).await;
        written?;
        buffer = returned;
    }
}
