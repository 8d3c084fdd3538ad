//! What a conversion prints.

use std::fmt::Write;

use super::compare::{Comparison, Difference};
use crate::{
    sae::{
        Sae,
        formats::{Format, Loaded, Target},
    },
    stage::{Failure, Result, progress::thousands},
};

/// The source in a few lines.
pub fn describe(loaded: &Loaded, target: Target) -> String {
    let Sae { params: p, activation, subtract_b_dec, row_norm } = &loaded.sae;
    let mut text = format!(
        "from        {}\nto          {}\nSAE         {activation}, d_in {}, d_sae {}\n",
        loaded.format,
        Format::from(target),
        p.d_in,
        p.d_sae
    );
    if let Some(hook) = &loaded.about.target {
        let skip = if p.w_skip.is_empty() { "" } else { ", with a linear path" };
        let _infallible = writeln!(text, "transcoder  to `{hook}`, d_out {}{skip}", p.d_out);
    }
    let input = match (row_norm.is_some(), *subtract_b_dec) {
        (false, false) => "as it is",
        (false, true) => "minus b_dec",
        (true, false) => "standardised",
        (true, true) => "standardised, minus b_dec",
    };
    let _infallible = writeln!(text, "input       {input}");
    text
}

/// Notes, one a line.
pub fn notes(notes: &[String]) -> String {
    notes.iter().map(|note| format!("note        {note}\n")).collect()
}

/// The comparison as an aligned table; `rows` says where the rows are from.
pub fn table(found: &Comparison, rows: &str) -> String {
    let line = |name: &str, d: &Difference| {
        format!("{name:<16}{:>12.3e}{:>14.3e}{:>14.3}\n", d.max, d.largest, d.of_rounding)
    };
    let rate = found.active as f64 / found.rows.max(1) as f64;
    format!(
        "\n{:<16}{:>12}{:>14}{:>14}\n{}{}{:<16}{} of {} rows ({} latents), {rate:.1} active a row\n\
         {:<16}{rows}\n",
        "",
        "max |Δ|",
        "largest",
        "of rounding",
        line("latents", &found.latents),
        line("reconstructions", &found.reconstructions),
        "active sets",
        thousands(found.differing_rows as u64),
        thousands(found.rows as u64),
        thousands(found.differing as u64),
        "rows",
    )
}

/// Whether the conversion may stand.
///
/// # Errors
/// An input failure where more than rounding is between the two.
pub fn verdict(found: &Comparison) -> Result<()> {
    if found.is_rounding() {
        return Ok(());
    }
    Err(Failure::input(format!(
        "what was written differs from the source by more than rounding: latents by {:.3e}, \
         reconstructions by {:.3e}, {} active latents",
        found.latents.max, found.reconstructions.max, found.differing
    ))
    .hint("the target does not hold this SAE; nothing was left in SAE_TO"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Kind;

    #[test]
    fn more_than_rounding_is_invalid_and_the_table_shows_it() {
        let latents = Difference { max: 0.25, largest: 12.5, of_rounding: 3.0 };
        let found = Comparison { rows: 4, active: 10, latents, ..Comparison::default() };
        let table = table(&found, "drawn");
        let line = table.lines().find(|line| line.starts_with("latents")).unwrap();
        let columns: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(columns, ["latents", "2.500e-1", "1.250e1", "3.000"]);
        assert!(table.contains("0 of 4 rows (0 latents), 2.5 active a row"), "{table}");
        let failure = verdict(&found).unwrap_err();
        assert_eq!(failure.kind, Kind::Input);
        assert!(failure.source.to_string().contains("more than rounding"));
        let latents = Difference { of_rounding: 0.5, ..latents };
        verdict(&Comparison { latents, ..found }).unwrap();
        assert!(verdict(&Comparison { latents, differing: 2, ..found }).is_err());
    }
}
