//! A cleanup on request.

use crate::error::Answer;
use crate::terms::cleanup::{Report, Wanted};

/// Removes what nobody uses; takes as long as the namespace has segments.
#[rustler::nif(schedule = "DirtyIo")]
fn cleanup(wanted: Wanted) -> Answer<Report> {
    Ok(Report::of(&wanted.options().run()?))
}
