//! The most likely token of a row of scores.

/// Returns the index of the highest score, of equal ones the lowest index. NaN is never the highest; without any
/// number there is none.
///
/// ```
/// use densessm_session::argmax;
///
/// assert_eq!(argmax(&[0.5, 2.0, -1.0, 2.0]), Some(1));
/// assert_eq!(argmax(&[f32::NAN, -3.0]), Some(1));
/// assert_eq!(argmax::<f64>(&[]), None);
/// ```
pub fn argmax<T: PartialOrd + Copy>(scores: &[T]) -> Option<usize> {
    let mut best: Option<(usize, T)> = None;
    for (index, &score) in scores.iter().enumerate() {
        let higher = match best {
            Some((_, highest)) => score > highest,
            // Only NaN does not equal itself.
            None => score.partial_cmp(&score).is_some(),
        };
        if higher {
            best = Some((index, score));
        }
    }
    best.map(|(index, _)| index)
}
