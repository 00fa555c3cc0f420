//! `proactor watch`: how a server is doing, live, as its status says (`proactor echo --status`).
//!
//! | module | what it holds |
//! |---|---|
//! | `source` | the connection, and its lines |
//! | `history` | rates: what changed from one status to the next |
//! | `view` | the screen |
//! | `lines` | the same as plain lines, where there is no terminal |

#![forbid(unsafe_code)]

mod history;
mod lines;
mod source;
mod view;

use std::io::{self, IsTerminal, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::history::History;
use self::source::{News, Source};
use crate::failure::Failure;
use crate::load::conduct::catch_interrupts;
use crate::status::address::StatusAddress;

/// How often the screen looks for keys, at least.
const KEY_INTERVAL: Duration = Duration::from_millis(50);

/// The flags of `proactor watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Where the server says how it does, as its --status has it: 127.0.0.1:PORT or unix:PATH.
    #[arg(value_name = "ADDR")]
    address: StatusAddress,

    /// Plain lines, also on a terminal.
    #[arg(long)]
    plain: bool,

    /// The statuses as they come, a line of JSON each.
    #[arg(long, conflicts_with = "plain")]
    json: bool,

    /// End after so many statuses. [default: when the server ends, or at Ctrl-C]
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Watches until told to stop, or until the server ends.
pub(crate) fn run(args: &WatchArgs) -> Result<(), Failure> {
    let source = Source::connect(&args.address)?;
    let shown = if args.json {
        lines::print_json(&source, args.count)
    } else if args.plain || !stdout().is_terminal() {
        lines::print(&source, args.count)
    } else {
        draw(&source, args)
    };
    match shown {
        // Whoever read this has seen enough, as in `proactor watch ... | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::new(format!("cannot watch {}: {error}", args.address))),
        Ok(()) => Ok(()),
    }
}

/// Draws until a key, or the server, ends it.
fn draw(source: &Source, args: &WatchArgs) -> io::Result<()> {
    // A signal must not leave the terminal as it is while drawing.
    let (_watch, ended) =
        catch_interrupts().map_err(|failure| io::Error::other(failure.to_string()))?;
    let mut terminal = ratatui::try_init()?;
    let result = draw_on(&mut terminal, source, args, &ended);
    ratatui::restore();
    if matches!(result, Ok(true)) {
        println!("the server at {} has ended", args.address);
    }
    result.map(drop)
}

/// `true` where the server has ended.
fn draw_on(
    terminal: &mut ratatui::DefaultTerminal,
    source: &Source,
    args: &WatchArgs,
    ended: &AtomicBool,
) -> io::Result<bool> {
    let mut history = History::new();
    let mut count = 0;
    terminal.draw(|frame| view::waiting(frame, &args.address.to_string()))?;
    while !ended.load(Ordering::Relaxed) {
        match source.next(KEY_INTERVAL)? {
            News::Status(status) => {
                history.push(*status);
                terminal.draw(|frame| view::draw(frame, &history))?;
                count += 1;
                if args.count.is_some_and(|limit| count >= limit) {
                    return Ok(false);
                }
            }
            News::Nothing => {}
            News::End => return Ok(true),
        }
        while event::poll(Duration::ZERO)? {
            match event::read()? {
                Event::Key(key) if ends(key) => return Ok(false),
                Event::Resize(..) if history.last().is_some() => {
                    terminal.draw(|frame| view::draw(frame, &history))?;
                }
                _ => {}
            }
        }
    }
    Ok(false)
}

/// Whether a key means the end.
fn ends(key: KeyEvent) -> bool {
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}
