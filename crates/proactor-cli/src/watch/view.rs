//! The screen, made for 80 columns and 24 rows, and wider where there is more room.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table};

use super::history::History;
use crate::compare::figures::{Metric, digits, short_bytes, short_time};
use crate::status::{Status, WorkerStatus};

/// Before the first status.
pub(crate) fn waiting(frame: &mut Frame<'_>, address: &str) {
    frame.render_widget(format!("waiting for the server at {address} ... q ends"), frame.area());
}

/// Draws the last status.
pub(crate) fn draw(frame: &mut Frame<'_>, history: &History) {
    let Some(status) = history.last() else { return };
    let [head, port, threads, sessions] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(6),
        Constraint::Min(5),
        Constraint::Length(7),
    ])
    .areas(frame.area());
    let halves = |area: Rect| {
        Layout::horizontal([Constraint::Percentage(58), Constraint::Percentage(42)]).areas(area)
    };
    let [counts, rates]: [Rect; 2] = halves(port);
    let [workers, batches]: [Rect; 2] = halves(threads);
    let [totals, slow]: [Rect; 2] = halves(sessions);
    draw_head(frame, head, status);
    draw_port(frame, counts, history, status);
    draw_rates(frame, rates, history);
    draw_workers(frame, workers, history, status);
    draw_batches(frame, batches, history);
    draw_sessions(frame, totals, history, status);
    draw_slow(frame, slow, status);
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let up = status.uptime_seconds as u64;
    let text = format!(
        "{}  {}  up {}:{:02}:{:02}",
        status.address,
        status.backend,
        up / 3600,
        up / 60 % 60,
        up % 60
    );
    let line = Line::from(vec![" proactor ".bold().reversed(), " ".into(), text.into()]);
    frame.render_widget(line, area);
    frame.render_widget(Line::from("q ends ").right_aligned().dim(), area);
}

fn draw_port(frame: &mut Frame<'_>, area: Rect, history: &History, status: &Status) {
    let workers = status.workers.as_deref().unwrap_or_default();
    let blocked = workers.iter().filter(|worker| worker.state == "blocked").count();
    let active = optional(status.active_threads);
    let handler = &status.handler;
    let time = |time_us: f64| if handler.count == 0 { "-".into() } else { short_time(time_us) };
    let lines = vec![
        pairs(&[
            ("completions", rate(history.rate(|status| status.dequeued_packets))),
            ("queued", optional(status.queued_packets)),
        ]),
        pairs(&[("handler p50", time(handler.p50_us)), ("p99", time(handler.p99_us))]),
        pairs(&[
            ("threads", format!("{active} of {} run", status.concurrency)),
            ("blocked", blocked.to_string()),
        ]),
        pairs(&[
            ("rescues", rate(history.rate(|status| status.rescues))),
            ("waits", rate(history.rate(|status| status.wait_calls))),
        ]),
    ];
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" port ")), area);
}

fn draw_rates(frame: &mut Frame<'_>, area: Rect, history: &History) {
    let width = usize::from(area.width.saturating_sub(2));
    let rates = history.completions();
    let newest = rates.iter().skip(rates.len().saturating_sub(width)).copied();
    let most = newest.clone().max().unwrap_or(0);
    let title = format!(" completions/s, to {} ", Metric::Throughput.show(most as f64));
    let plot = Sparkline::default()
        .data(newest)
        .style(Style::new().fg(Color::Cyan))
        .block(Block::bordered().title(title));
    frame.render_widget(plot, area);
}

fn draw_workers(frame: &mut Frame<'_>, area: Rect, history: &History, status: &Status) {
    let workers = status.workers.as_deref().unwrap_or_default();
    let room = usize::from(area.height.saturating_sub(3));
    let hidden = workers.len().saturating_sub(room);
    let title = match (status.workers.is_some(), hidden) {
        (false, _) => " threads: the system does not say ".to_owned(),
        (true, 0) => format!(" {} threads ", workers.len()),
        (true, hidden) => format!(" {} threads, {hidden} of them not shown ", workers.len()),
    };
    let rows = order(workers).into_iter().take(room).map(|worker| {
        Row::new(vec![
            Cell::from(format!("{:>2}", worker.index)),
            Cell::from(optional(worker.thread_id)),
            Cell::from(Span::styled(worker.state.clone(), state_style(&worker.state))),
            right(rate(history.worker_rate(worker.index))),
            right(worker.queued_packets.to_string()),
            right(worker.sources.to_string()),
        ])
    });
    let widths = [2, 8, 8, 9, 6, 7].map(Constraint::Length);
    let head = ["#", "thread", "state"].map(Cell::from).into_iter();
    let head = head.chain(["packets", "queue", "sockets"].map(|name| right(name.to_owned())));
    let table = Table::new(rows, widths)
        .header(Row::new(head).style(Modifier::DIM))
        .block(Block::bordered().title(title));
    frame.render_widget(table, area);
}

/// Those that do something first, so that they are seen where there is no room for all.
fn order(workers: &[WorkerStatus]) -> Vec<&WorkerStatus> {
    let mut ordered: Vec<&WorkerStatus> = workers.iter().collect();
    let rank = |state: &str| match state {
        "blocked" => 0,
        "running" => 1,
        _ => 2,
    };
    if ordered.len() > 8 {
        ordered.sort_by_key(|worker| rank(&worker.state));
    }
    ordered
}

fn state_style(state: &str) -> Style {
    match state {
        "running" => Style::new().fg(Color::Green),
        "blocked" => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        _ => Style::new().add_modifier(Modifier::DIM),
    }
}

fn draw_batches(frame: &mut Frame<'_>, area: Rect, history: &History) {
    let title = match history.mean_batch() {
        Some(mean) => format!(" batches of {} packets ", digits(mean)),
        None => " batches ".to_owned(),
    };
    let counts = history.batches().unwrap_or_default();
    let sum: u64 = counts.iter().sum();
    let widest = usize::from(area.width.saturating_sub(16));
    let last = counts.len().saturating_sub(1);
    let lines: Vec<Line<'_>> = counts
        .iter()
        .enumerate()
        .map(|(index, count)| {
            let (from, to) = (1_u64 << index, (2_u64 << index) - 1);
            let size = match index {
                0 => "1".to_owned(),
                _ if index == last => format!("{from}+"),
                _ => format!("{from}-{to}"),
            };
            let share = if sum == 0 { 0.0 } else { *count as f64 / sum as f64 };
            let bar = "█".repeat((share * widest as f64).round() as usize);
            let percent = if *count == 0 { String::new() } else { percent(share) };
            Line::from(vec![
                format!("{size:>7} ").dim(),
                Span::styled(bar, Style::new().fg(Color::Cyan)),
                format!(" {percent}").into(),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}

fn percent(share: f64) -> String {
    if share < 0.01 { "<1 %".into() } else { format!("{:.0} %", share * 100.0) }
}

fn draw_sessions(frame: &mut Frame<'_>, area: Rect, history: &History, status: &Status) {
    let bytes = |count: fn(&Status) -> u64| {
        history.rate(count).map_or("-".into(), |rate| format!("{}/s", short_bytes(rate)))
    };
    let lent = status.lent_pool_bytes.map_or("-".into(), |lent| short_bytes(lent as f64));
    let lines = vec![
        pairs(&[("open", status.sessions.to_string()), ("most", status.peak_sessions.to_string())]),
        pairs(&[
            ("in all", status.total_sessions.to_string()),
            ("new", rate(history.rate(|status| status.total_sessions))),
        ]),
        pairs(&[
            ("in", bytes(|status| status.bytes_received)),
            ("out", bytes(|status| status.bytes_sent)),
        ]),
        pairs(&[("buffers", short_bytes(status.pool_bytes as f64)), ("in use", lent)]),
        pairs(&[("timers", optional(status.pending_timers))]),
    ];
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" sessions ")), area);
}

fn draw_slow(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let rows = status.slow_sessions.iter().map(|slow| {
        let peer = slow.peer.clone().unwrap_or_else(|| format!("session {}, gone", slow.session));
        Row::new(vec![Cell::from(peer), right(short_time(slow.longest_us))])
    });
    let table = Table::new(rows, [Constraint::Min(10), Constraint::Length(8)])
        .block(Block::bordered().title(" slowest handlers, last 10 s "));
    frame.render_widget(table, area);
}

/// Names and values, two to a line, aligned.
fn pairs(pairs: &[(&str, String)]) -> Line<'static> {
    let mut spans = Vec::new();
    for (name, value) in pairs {
        spans.push(Span::from(format!("{name:<12}")).dim());
        spans.push(Span::from(format!("{value:<11}")));
    }
    Line::from(spans)
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

fn rate(rate: Option<f64>) -> String {
    rate.map_or("-".into(), |rate| Metric::Throughput.show(rate))
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::watch::history::tests::status;

    /// The screen's rows after two statuses.
    fn screen(width: u16, height: u16, change: impl Fn(&mut Status)) -> Vec<String> {
        let mut history = History::new();
        for seconds in [3723.0, 3723.5] {
            let mut status = status(seconds);
            change(&mut status);
            history.push(status);
        }
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &history)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(row).collect()
    }

    #[test]
    fn everything_is_readable_at_80_by_24() {
        let screen = screen(80, 24, |_| {});
        let text = screen.join("\n");
        for words in [
            "127.0.0.1:7000  io_uring  up 1:02:03",
            "completions 123 k/s    queued      17",
            "handler p50",
            "10.0 ms",
            "2 of 2 run",
            "rescues     30/s",
            "waits       12.0 k/s",
            "completions/s, to 123 k/s",
            " 4 threads ",
            " 1 4194001  blocked  60.0 k/s      1    5000",
            " 3 4194003  waiting",
            " batches of 2.94 packets ",
            "    4-7 ██ 12 %",
            "   128+",
            "open        10000      most        12345",
            "in          117 MiB/s  out         116 MiB/s",
            "buffers     256 MiB    in use      4.00 MiB",
            "127.0.0.1:54321",
            "session 4, gone",
            "12.0 ms",
        ] {
            let missing = format!("'{words}' is not on the screen:\n{text}");
            assert!(text.contains(words), "{missing}");
        }
        // Every box is closed at the right edge: nothing has run over it.
        assert!(screen[1..].iter().all(|row| row.ends_with(['│', '┐', '┘'])), "{text}");
    }

    #[test]
    fn many_threads_show_the_busy_ones_first() {
        let text = screen(80, 24, |status| {
            let workers = status.workers.as_mut().unwrap();
            let idle = workers[3].clone();
            workers.splice(0..0, (10..60).map(|index| WorkerStatus { index, ..idle.clone() }));
        })
        .join("\n");
        assert!(text.contains("54 threads, 47 of them not shown"), "{text}");
        assert!(text.contains("1 4194001  blocked"), "{text}");
    }

    #[test]
    fn what_a_backend_does_not_know_is_not_made_up() {
        let text = screen(100, 30, |status| {
            status.workers = None;
            status.batches = None;
            status.queued_packets = None;
            status.active_threads = None;
        })
        .join("\n");
        assert!(text.contains("the system does not say"), "{text}");
        assert!(text.contains("queued      -"), "{text}");
    }

    #[test]
    fn small_screens_do_not_panic() {
        for (width, height) in [(1, 1), (20, 5), (40, 12), (79, 23), (200, 60)] {
            screen(width, height, |_| {});
        }
    }
}
