//! Replaces charts with a sentence in a build without the cargo feature `charts`.

use super::{Chart, Series};
use std::iter;

impl Chart {
    /// Returns no legend, as nothing is drawn.
    pub(super) fn legend(&self) -> impl Iterator<Item = (&Series, String)> {
        iter::empty()
    }

    /// Returns a paragraph that says why there is no chart.
    pub(super) fn svg(&self) -> String {
        "<p>This build of densessm draws no charts; build it with the cargo feature <code>charts</code>.</p>".to_owned()
    }
}
