//! Rules that are left out of a comparison, because the system below is known to break them.

use std::collections::BTreeMap;

/// What Wine 8.0 breaks, of what the steps here rest on; see `docs/semantics.md`.
const WINE_8: [(u16, &str); 3] = [
    (17, "the cancel of a send under way was lost once in some 300; by Wine or not is open"),
    (61, "receives of one socket that several threads started are not kept in order"),
    (106, "after a connect that was refused the socket cannot be connected any more"),
];

/// Rules that do not count, each with its reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftOut {
    rules: BTreeMap<u16, String>,
}

impl LeftOut {
    /// Reads `wine`, or rules by their numbers.
    pub(crate) fn parse(names: &[String]) -> Result<Self, String> {
        let mut rules = BTreeMap::new();
        for name in names {
            if name == "wine" {
                rules.extend(WINE_8.map(|(rule, reason)| (rule, reason.to_owned())));
                continue;
            }
            let rule =
                name.parse().map_err(|_| format!("'{name}' is no rule: a number, or wine"))?;
            rules.insert(rule, "left out by request".to_owned());
        }
        Ok(Self { rules })
    }

    /// The first of these rules that does not count.
    pub(crate) fn first_of(&self, rules: &[u16]) -> Option<u16> {
        rules.iter().copied().find(|rule| self.rules.contains_key(rule))
    }

    /// The rules by their numbers, as a list for the command line.
    pub(crate) fn numbers(&self) -> String {
        let numbers: Vec<String> = self.rules.keys().map(u16::to_string).collect();
        numbers.join(",")
    }

    /// Each rule with its reason.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, &str)> {
        self.rules.iter().map(|(rule, reason)| (*rule, reason.as_str()))
    }
}
