//! A chat server for lines, with rooms.
//!
//! Run it:  cargo run --release --example chat -- [ADDRESS]
//! Try it:  nc 127.0.0.1 7000        in two terminals or more; /help says what there is
//!
//! Each client is a session whose handler keeps its name and its place in a room: a `Membership`,
//! which ends when the handler goes, however the client left. What somebody says is framed once and
//! shared by all members of the room. Enter in this terminal stops the server in order; twice, at
//! once.

use std::io::BufRead;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proactor::service::framing::{LineEnd, Lines};
use proactor::service::groups::{Groups, JoinError, Membership};
use proactor::service::{
    DisconnectReason, HandlerResult, Limits, SendError, ServerService, Session, SessionHandler,
    Timeouts,
};

const MAXIMUM_NAME_BYTES: usize = 24;
const MAXIMUM_LINE_BYTES: usize = 1024;
const HELP: &str = "/name NAME   call yourself something
/join ROOM   go to a room, which is made if need be
/rooms       which rooms there are
/who         who is in this room
/quit        leave
anything else is said to the room";

/// What all sessions share.
struct Chat {
    rooms: Groups<Session>,
}

/// What others may know of a session.
struct Profile {
    name: std::sync::Mutex<String>,
}

struct Client {
    chat: Arc<Chat>,
    place: Option<Membership<Session>>,
}

impl SessionHandler for Client {
    fn connected(&mut self, session: &Session) -> HandlerResult {
        let name = std::sync::Mutex::new(format!("guest{}", session.id()));
        let _ = session.set_user_data(Profile { name });
        session.send("Welcome. /help says what there is.")?;
        self.join(session, "lobby")
    }

    fn received(&mut self, session: &Session, line: &[u8]) -> HandlerResult {
        // What other clients' terminals are shown has no control characters in it.
        let line: String =
            String::from_utf8_lossy(line).chars().filter(|letter| !letter.is_control()).collect();
        let (command, argument) = line.split_once(' ').unwrap_or((&line, ""));
        match command {
            "/help" => self.tell(session, HELP)?,
            "/name" => self.rename(session, argument.trim())?,
            "/join" => self.join(session, argument.trim())?,
            "/rooms" => {
                let mut rooms: Vec<String> = self.chat.rooms.all().iter().map(describe).collect();
                rooms.sort();
                self.tell(session, &rooms.join("\n"))?;
            }
            "/who" => {
                let room = self.place.as_ref().and_then(Membership::group);
                let members = room.map(|room| room.members());
                let names: Vec<_> =
                    members.iter().flat_map(|members| members.iter().map(name_of)).collect();
                self.tell(session, &names.join(", "))?;
            }
            "/quit" => session.disconnect(),
            "" => {}
            _ if command.starts_with('/') => self.tell(session, "/help says what there is")?,
            _ => self.say(session, format!("{}: {line}", name_of(session))),
        }
        Ok(())
    }

    fn draining(&mut self, session: &Session) {
        let _ = session.send("* the server stops; good-bye");
        session.disconnect();
    }

    fn disconnected(&mut self, session: &Session, reason: DisconnectReason) {
        println!("{} has left: {reason}", name_of(session));
        self.leave(session);
    }
}

impl Client {
    /// Answers, a line at a time.
    fn tell(&self, session: &Session, text: &str) -> Result<(), SendError> {
        text.lines().try_for_each(|line| session.send(line))
    }

    /// Says something to all others in the room. Who does not read it in time has it dropped.
    fn say(&self, session: &Session, text: String) {
        if let Some(room) = self.place.as_ref().and_then(Membership::group) {
            room.broadcast_except(&Bytes::from(text), session.id().get());
        }
    }

    fn rename(&self, session: &Session, name: &str) -> HandlerResult {
        if name.is_empty() || name.len() > MAXIMUM_NAME_BYTES {
            self.tell(session, "* a name has 1 to 24 bytes")?;
            return Ok(());
        }
        let before = name_of(session);
        if let Some(profile) = session.user_data::<Profile>() {
            *profile.name.lock().expect("nobody panics with it") = name.to_owned();
        }
        self.say(session, format!("* {before} is now {name}"));
        self.tell(session, &format!("* you are {name}"))?;
        Ok(())
    }

    fn join(&mut self, session: &Session, room: &str) -> HandlerResult {
        if room.is_empty() {
            self.tell(session, "* which room?")?;
            return Ok(());
        }
        match self.chat.rooms.join(room, session.clone()) {
            Ok(place) => {
                self.leave(session);
                self.place = Some(place);
                self.say(session, format!("* {} has come", name_of(session)));
                self.tell(session, &format!("* you are in {room}"))?;
            }
            Err(JoinError::AlreadyMember) => self.tell(session, "* you are here already")?,
            Err(error) => self.tell(session, &format!("* {error}"))?,
        }
        Ok(())
    }

    fn leave(&mut self, session: &Session) {
        self.say(session, format!("* {} has left", name_of(session)));
        self.place = None;
    }
}

fn name_of(session: &Session) -> String {
    let profile = session.user_data::<Profile>();
    profile
        .map(|profile| profile.name.lock().expect("nobody panics with it").clone())
        .unwrap_or_default()
}

fn describe(room: &proactor::service::groups::Group<Session>) -> String {
    format!("{} ({})", room.name(), room.len())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:7000".to_owned());
    let chat = Arc::new(Chat { rooms: Groups::new() });
    let server = ServerService::builder(move |_| Client { chat: chat.clone(), place: None })
        .name("chat")
        .listen(&address)
        .framing(Lines::new().line_end(LineEnd::Lf).with_maximum_frame_bytes(MAXIMUM_LINE_BYTES))
        .limits(Limits { sessions_per_address: 1_000, ..Limits::default() })
        // People think before they say something, and come to listen.
        .timeouts(Timeouts { handshake: None, ..Timeouts::default() })
        .drain(Duration::from_secs(2))
        .start()?;
    println!("chat at {}", server.local_address().expect("a TCP listener has an address"));

    let handle = server.handle();
    std::thread::spawn(move || {
        for _line in std::io::stdin().lock().lines() {
            handle.request_stop();
        }
    });
    println!("{:?}", server.run());
    Ok(())
}
