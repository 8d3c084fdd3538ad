//! Long series made short without losing what the eye would see.

/// A point of a plot.
pub type Point = (f64, f64);

/// At most about twice `buckets` of the points: of each bucket the lowest and the highest, in their
/// order, and the first and the last of all. Points that are not finite are left out.
pub fn thinned(points: impl Iterator<Item = Point>, buckets: usize) -> Vec<Point> {
    let points: Vec<Point> = points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return vec![] };
    if points.len() <= 2 * buckets {
        return points;
    }
    let mut kept = vec![*first];
    for bucket in points.chunks(points.len().div_ceil(buckets)) {
        let by_height = |(_, a): &(usize, &Point), (_, b): &(usize, &Point)| a.1.total_cmp(&b.1);
        let lowest = bucket.iter().enumerate().min_by(by_height);
        let highest = bucket.iter().enumerate().max_by(by_height);
        let mut extremes: Vec<_> = lowest.into_iter().chain(highest).collect();
        extremes.sort_by_key(|(place, _)| *place);
        kept.extend(extremes.into_iter().map(|(_, point)| *point));
    }
    kept.push(*last);
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_and_ends_stay() {
        let height = |i: usize| match i {
            4321 => 100.0,
            7000 => -100.0,
            _ => (i as f64 * 0.37).sin(),
        };
        let points = thinned((0..10_000).map(|i| (i as f64, height(i))), 200);
        assert!((200..=402).contains(&points.len()), "{}", points.len());
        assert_eq!(points[0], (0.0, height(0)));
        assert_eq!(points.last(), Some(&(9999.0, height(9999))));
        assert!(points.contains(&(4321.0, 100.0)) && points.contains(&(7000.0, -100.0)));
        assert!(points.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn short_series_are_whole_but_for_what_is_no_number() {
        let points = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)];
        assert_eq!(thinned(points.into_iter(), 10), [(0.0, 1.0), (2.0, 3.0)]);
        assert_eq!(thinned(std::iter::empty(), 10), []);
    }
}
