//! The same echo server on the server layer.

use proactor::service::{HandlerResult, Runtime, ServerService, Session, SessionHandler};
use proactor::{BackendChoice, CompletionPort, PoolBuffer};

use crate::{Outcome, Serving};

struct Echo;

impl SessionHandler for Echo {
    fn received(&mut self, session: &Session, bytes: &[u8]) -> HandlerResult {
        session.send(bytes)?;
        Ok(())
    }

    fn received_buffer(&mut self, session: &Session, buffer: PoolBuffer) -> HandlerResult {
        session.send_buffer(buffer)?;
        Ok(())
    }
}

pub(crate) fn serve(options: &Serving) -> Outcome {
    let port = CompletionPort::builder().backend(BackendChoice::from_name(&options.backend)?);
    let runtime = Runtime::builder()
        .port(port)
        .concurrency(options.workers)
        .threads(options.workers)
        .build()?;
    let server =
        ServerService::builder(|_session| Echo).listen(&options.listen).start_on(&runtime)?;
    println!("listening on {}", server.local_address().expect("it listens at an address"));
    server.run();
    Ok(())
}
