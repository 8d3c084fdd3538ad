//! Tables for a terminal.

/// Rows under their heads, columns aligned: those that `left` names on the left, numbers and all others on
/// the right.
pub fn aligned<'a, R: AsRef<[String]> + 'a>(
    head: &'a R,
    rows: &'a [R],
    left: impl Fn(usize) -> bool,
) -> String {
    let lines: Vec<&[String]> =
        std::iter::once(head).chain(rows).map(AsRef::<[String]>::as_ref).collect();
    let width = |i: usize| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.as_ref().len()).map(width).collect();
    let mut out = String::new();
    for line in lines {
        let cell = |(i, text): (usize, &String)| match left(i) {
            true => format!("{text:w$}", w = widths[i]),
            false => format!("{text:>w$}", w = widths[i]),
        };
        let cells: Vec<String> = line.iter().enumerate().map(cell).collect();
        out += &format!("{}\n", cells.join("  ").trim_end());
    }
    out
}
