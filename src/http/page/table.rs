//! Tables that are tables on a wide screen and cards on a narrow one.
//!
//! Their roles are spelled out, since browsers forget them where a style sheet lays a table out in another way; and each
//! cell has its column's name, which a card shows.

use maud::{Markup, html};

/// A table. Its caption is for those who do not see the heading above it.
fn table(heading: &str, columns: &[&str], rows: &Markup) -> Markup {
    html! {
        table role="table" {
            caption { span.unseen { (heading) } }
            thead role="rowgroup" {
                tr role="row" {
                    @for column in columns { th role="columnheader" scope="col" { (column) } }
                }
            }
            tbody role="rowgroup" { (rows) }
        }
    }
}

/// A row, whose first cell says what it is about.
pub(super) fn row(id: &str, columns: &[&str], cells: &[Markup]) -> Markup {
    let mut cells = columns.iter().zip(cells);
    html! {
        tr #(id) role="row" {
            @if let Some((_, first)) = cells.next() { th role="rowheader" scope="row" { (first) } }
            @for (column, cell) in cells { td role="cell" data-column=(column) { (cell) } }
        }
    }
}

/// A section whose table is always to be seen. By its id the script knows it again.
pub(super) fn section(id: &str, heading: &str, columns: &[&str], rows: &Markup) -> Markup {
    html! { section #(id) { h2 { (heading) } (table(heading, columns, rows)) } }
}

/// A section that is folded up unless there is a reason to look: it has a summary instead.
pub(super) fn folded(
    id: &str,
    heading: &str,
    summary: &str,
    open: bool,
    columns: &[&str],
    rows: &[Markup],
) -> Markup {
    html! {
        section #(id) {
            details open[open] {
                summary { h2 { (heading) } " " span.facts { (summary) } }
                @if !rows.is_empty() { (table(heading, columns, &html! { @for row in rows { (row) } })) }
            }
        }
    }
}
