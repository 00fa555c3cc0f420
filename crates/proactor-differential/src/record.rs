//! Outcomes as text, so that those of another system can be compared.
//!
//! ```text
//! proactor-differential 1 backend iocp steps 60 leave-out 58,59
//! seed 7
//! 0 connect #0: Ok(())
//! 0   connect #0 key 100: 0 bytes ...
//! ```

use crate::rules::LeftOut;
use crate::world::Line;

/// The form of the text, and of the sequences: a seed of another version is another sequence.
const VERSION: &str = "1";

/// What --print-outcomes wrote.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) backend: String,
    pub(crate) steps: usize,
    pub(crate) left_out: LeftOut,
    pub(crate) outcomes: Vec<(u64, Vec<Line>)>,
}

/// The first line.
pub(crate) fn header(backend: &str, steps: usize, left_out: &LeftOut) -> String {
    let rules = left_out.numbers();
    let rules = if rules.is_empty() { "nothing" } else { &rules };
    format!("proactor-differential {VERSION} backend {backend} steps {steps} leave-out {rules}\n")
}

/// The outcomes of a seed.
pub(crate) fn outcomes(seed: u64, lines: &[Line]) -> String {
    let lines = lines.iter().map(|line| format!("{} {}\n", line.step, line.text));
    format!("seed {seed}\n{}", lines.collect::<String>())
}

impl Record {
    /// Reads the text.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let [
            "proactor-differential",
            VERSION,
            "backend",
            backend,
            "steps",
            steps,
            "leave-out",
            rules,
        ] = header[..]
        else {
            return Err("not what --print-outcomes of this version writes".to_owned());
        };
        let steps = steps.parse().map_err(|_| format!("'{steps}' steps"))?;
        let rules: Vec<String> = match rules {
            "nothing" => Vec::new(),
            rules => rules.split(',').map(str::to_owned).collect(),
        };
        let left_out = LeftOut::parse(&rules)?;
        let mut outcomes: Vec<(u64, Vec<Line>)> = Vec::new();
        for line in lines {
            let wrong = || format!("this line cannot be read: {line}");
            let (first, rest) = line.split_once(' ').ok_or_else(wrong)?;
            if first == "seed" {
                outcomes.push((rest.parse().map_err(|_| wrong())?, Vec::new()));
                continue;
            }
            let step = first.parse().map_err(|_| wrong())?;
            let (_, lines) = outcomes.last_mut().ok_or_else(wrong)?;
            lines.push(Line { step, text: rest.to_owned() });
        }
        Ok(Self { backend: backend.to_owned(), steps, left_out, outcomes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let line = |step, text: &str| Line { step, text: text.to_owned() };
        let lines = vec![line(0, "connect #0: Ok(())"), line(1, "  accept #1 key 1: 0 bytes")];
        let left_out = LeftOut::parse(&["58".to_owned(), "9".to_owned()]).unwrap();
        let text = header("iocp", 60, &left_out) + &outcomes(7, &lines) + &outcomes(8, &[]);
        let record = Record::parse(&text).unwrap();
        assert_eq!((record.backend.as_str(), record.steps), ("iocp", 60));
        assert_eq!(record.left_out.numbers(), "9,58");
        assert_eq!(record.outcomes, [(7, lines), (8, vec![])]);
        assert!(Record::parse("something else").is_err());
    }
}
