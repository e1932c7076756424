//! Findings: what `assess` has to say, each with its remedy, and what follows from them. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use crate::error::Exit;

/// In the order in which they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A migration would fail or lose something.
    Blocker,
    /// It works, but somebody should decide.
    Warning,
    Note,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Severity::Blocker => "blocker",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// One finding. `check` is stable, for programs; text and remedy are for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub check: &'static str,
    pub text: String,
    pub remedy: String,
}

/// Findings as they are gathered; every check adds its own, none ends the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    list: Vec<Finding>,
}

impl Findings {
    pub fn blocker(&mut self, check: &'static str, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Blocker, check, text, remedy);
    }

    pub fn warning(&mut self, check: &'static str, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, check, text, remedy);
    }

    pub fn note(&mut self, check: &'static str, text: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Note, check, text, remedy);
    }

    /// A check that could not be made: an error is never silently a pass.
    pub fn failed(&mut self, check: &'static str, error: &(dyn std::error::Error + 'static), hint: Option<String>) {
        let text = service::report(error, None).replace('\n', "").replacen("error: ", "", 1);
        self.blocker(check, text, hint.unwrap_or_else(|| "mend this, then dflux assess".into()));
    }

    pub fn add(&mut self, severity: Severity, check: &'static str, text: impl Into<String>, remedy: impl Into<String>) {
        self.list.push(Finding { severity, check, text: text.into(), remedy: remedy.into() });
    }

    pub fn append(&mut self, mut others: Findings) {
        self.list.append(&mut others.list);
    }

    /// Blockers first; within a severity as they were found.
    pub fn sorted(mut self) -> Vec<Finding> {
        self.list.sort_by_key(|finding| finding.severity);
        self.list
    }

    pub fn list(&self) -> &[Finding] {
        &self.list
    }
}

pub fn blockers(findings: &[Finding]) -> usize {
    findings.iter().filter(|finding| finding.severity == Severity::Blocker).count()
}

/// Warnings do not refuse anything: somebody decides.
pub fn exit(findings: &[Finding]) -> Exit {
    if blockers(findings) > 0 { Exit::Refused } else { Exit::Done }
}

/// One line for the finding and one for its remedy.
pub fn render(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let _ = writeln!(out, "{:<8} {}: {}", finding.severity.name(), finding.check, finding.text);
        if !finding.remedy.is_empty() {
            let _ = writeln!(out, "         remedy: {}", finding.remedy);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_blocker_refuses_and_blockers_come_first() {
        let mut findings = Findings::default();
        findings.note("a", "x", "");
        findings.warning("b", "y", "z");
        assert_eq!(exit(findings.list()), Exit::Done);
        findings.blocker("c", "u", "v");
        let sorted = findings.sorted();
        assert_eq!(exit(&sorted), Exit::Refused);
        assert_eq!(sorted[0].check, "c");
        assert_eq!(sorted[2].check, "a");
        assert!(render(&sorted).starts_with("blocker  c: u\n         remedy: v\nwarning  b: y"));
    }

    #[test]
    fn a_check_that_failed_is_a_blocker() {
        let mut findings = Findings::default();
        findings.failed("source", &std::io::Error::other("gone"), None);
        assert_eq!(exit(findings.list()), Exit::Refused);
        assert_eq!(findings.list()[0].text, "gone");
    }
}
