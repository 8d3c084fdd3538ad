//! Ordinary least squares with the classical intervals (Student 1908).

/// Confidence of all intervals.
pub const CONFIDENCE: f64 = 0.95;
/// A column of which less than this share is its own is a combination of others.
const COLLINEAR: f64 = 1e-6;

/// A number with its interval, where there are more observations than coefficients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The best guess.
    pub value: f64,
    /// Half of the interval's width.
    pub margin: Option<f64>,
}

/// `y = X β + ε`.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// β.
    pub coefficients: Vec<f64>,
    /// The triangle of `X = QR`, row by row.
    r: Vec<Vec<f64>>,
    /// Half of a standard interval: deviation of ε times Student's quantile.
    reach: Option<f64>,
}

/// Why there is no fit: the columns up to the one with this number are not independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collinear(pub usize);

impl Fit {
    /// Fits rows of `x`, of equal length, to `y`, by Gram and Schmidt's orthogonalisation.
    ///
    /// # Errors
    /// [`Collinear`] where the rows do not decide all coefficients.
    pub fn new(x: &[Vec<f64>], y: &[f64]) -> Result<Self, Collinear> {
        let width = x.first().map_or(0, Vec::len);
        let mut q: Vec<Vec<f64>> = vec![];
        let mut r = vec![vec![0.0; width]; width];
        for j in 0..width {
            let mut column: Vec<f64> = x.iter().map(|row| row[j]).collect();
            // Twice is enough for orthogonality to the last digits.
            for _ in 0..2 {
                for (i, direction) in q.iter().enumerate() {
                    let along = dot(direction, &column);
                    r[i][j] += along;
                    column.iter_mut().zip(direction).for_each(|(c, d)| *c -= along * d);
                }
            }
            let own = dot(&column, &column).sqrt();
            let all = x.iter().map(|row| row[j] * row[j]).sum::<f64>().sqrt();
            if j >= x.len() || own <= COLLINEAR * all {
                return Err(Collinear(j));
            }
            r[j][j] = own;
            q.push(column.iter().map(|c| c / own).collect());
        }
        let rotated: Vec<f64> = q.iter().map(|direction| dot(direction, y)).collect();
        let coefficients = upper_solve(&r, &rotated);
        let error = |(row, y): (&Vec<f64>, &f64)| (y - dot(row, &coefficients)).powi(2);
        let squared: f64 = x.iter().zip(y).map(error).sum();
        let freedom = (y.len() - width) as u32;
        let deviation = (squared / f64::from(freedom)).sqrt();
        let reach = (freedom > 0).then(|| deviation * student_quantile(freedom));
        Ok(Self { coefficients, r, reach })
    }

    /// The value at `x`.
    pub fn at(&self, x: &[f64]) -> f64 {
        dot(x, &self.coefficients)
    }

    /// A linear combination of the coefficients, for instance one of them.
    pub fn combination(&self, x: &[f64]) -> Estimate {
        Estimate {
            value: self.at(x),
            margin: self.reach.map(|reach| reach * self.leverage(x).sqrt()),
        }
    }

    /// A new observation at `x`.
    pub fn prediction(&self, x: &[f64]) -> Estimate {
        let margin = self.reach.map(|reach| reach * (1.0 + self.leverage(x)).sqrt());
        Estimate { value: self.at(x), margin }
    }

    /// `xᵀ (XᵀX)⁻¹ x = |R⁻ᵀ x|²`.
    fn leverage(&self, x: &[f64]) -> f64 {
        let mut z: Vec<f64> = vec![];
        for (j, x) in x.iter().enumerate() {
            let before: f64 = z.iter().zip(&self.r).map(|(z, row)| z * row[j]).sum();
            z.push((x - before) / self.r[j][j]);
        }
        dot(&z, &z)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// β of `R β = b`.
fn upper_solve(r: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let mut beta = vec![0.0; b.len()];
    for i in (0..b.len()).rev() {
        let known = dot(&r[i][i + 1..], &beta[i + 1..]);
        beta[i] = (b[i] - known) / r[i][i];
    }
    beta
}

/// What |t| of Student's distribution stays below with [`CONFIDENCE`].
fn student_quantile(freedom: u32) -> f64 {
    let (mut low, mut high) = (0.0, 1e3);
    // Each time half: 2⁻⁶⁴ of the first interval is below the last digit.
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if student_within(middle, freedom) < CONFIDENCE { low = middle } else { high = middle }
    }
    high
}

/// The probability of |t| below `t`: Abramowitz & Stegun 26.7.3 and 26.7.4, finite sums for whole
/// degrees of freedom.
fn student_within(t: f64, freedom: u32) -> f64 {
    let angle = (t / f64::from(freedom).sqrt()).atan();
    let (sin, cos) = angle.sin_cos();
    let odd = freedom % 2;
    // 1 + cos²·1/2 + cos⁴·(1·3)/(2·4) + … up to cos^(freedom - 2); cos·(1 + cos²·2/3 + …) for odd ones.
    let mut term = if odd == 1 { cos } else { 1.0 };
    let mut sum = 0.0;
    for n in (2 + odd..=freedom).step_by(2) {
        sum += term;
        term *= cos * cos * f64::from(n - 1) / f64::from(n);
    }
    if odd == 1 { std::f64::consts::FRAC_2_PI * (angle + sin * sum) } else { sin * sum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sae::random::{Normal, Purpose};

    #[test]
    fn students_quantiles_are_those_of_the_tables() {
        for (freedom, t) in [
            (1, 12.706_204_74),
            (2, 4.302_652_73),
            (3, 3.182_446_31),
            (4, 2.776_445_11),
            (5, 2.570_581_84),
            (10, 2.228_138_85),
            (30, 2.042_272_46),
            (121, 1.979_763_77),
        ] {
            let found = student_quantile(freedom);
            assert!((found - t).abs() < 1e-7 * t, "{freedom}: {found}, expected {t}");
        }
    }

    #[test]
    fn exact_observations_give_their_coefficients_back() {
        let x: Vec<Vec<f64>> =
            (0..7).map(|i| vec![1.0, f64::from(i), f64::from(i * i % 5)]).collect();
        let y: Vec<f64> = x.iter().map(|row| 3.0 - 0.5 * row[1] + 2.0 * row[2]).collect();
        let fit = Fit::new(&x, &y).unwrap();
        for (found, expected) in fit.coefficients.iter().zip([3.0, -0.5, 2.0]) {
            assert!((found - expected).abs() < 1e-12, "{found}, expected {expected}");
        }
        assert!(fit.prediction(&[1.0, 100.0, -4.0]).margin.unwrap() < 1e-10);
    }

    /// y = x + 1, with residuals that can be summed by hand.
    #[test]
    fn intervals_by_hand() {
        let x: Vec<Vec<f64>> = [0.0, 1.0, 2.0].map(|x| vec![1.0, x]).into();
        let fit = Fit::new(&x, &[1.1, 1.8, 3.1]).unwrap();
        // Slope 1, mean 2; residuals 0.1, -0.2, 0.1: s² = 0.06 with one degree of freedom.
        let reach = 0.06_f64.sqrt() * student_quantile(1);
        let slope = fit.combination(&[0.0, 1.0]);
        assert!((slope.value - 1.0).abs() < 1e-12);
        assert!((slope.margin.unwrap() - reach / 2.0_f64.sqrt()).abs() < 1e-9);
        let at_4 = fit.prediction(&[1.0, 4.0]);
        assert!((at_4.value - 5.0).abs() < 1e-12);
        assert!(
            (at_4.margin.unwrap() - reach * (1.0 + 1.0 / 3.0 + 9.0 / 2.0_f64).sqrt()).abs() < 1e-9
        );
    }

    #[test]
    fn two_points_are_a_line_without_an_interval() {
        let fit = Fit::new(&[vec![1.0, 2.0], vec![1.0, 4.0]], &[1.0, 2.0]).unwrap();
        let there = fit.prediction(&[1.0, 8.0]);
        assert!((there.value - 4.0).abs() < 1e-12);
        assert_eq!(there.margin, None);
    }

    #[test]
    fn what_the_rows_do_not_decide_is_not_fitted() {
        let same = vec![vec![1.0, 9.0]; 4];
        assert_eq!(Fit::new(&same, &[1.0; 4]), Err(Collinear(1)));
        let together: Vec<Vec<f64>> =
            (1..6).map(f64::from).map(|i| vec![1.0, i, 2.0 * i + 3.0]).collect();
        assert_eq!(Fit::new(&together, &[1.0; 5]), Err(Collinear(2)));
        let few = [vec![1.0, 1.0, 2.0], vec![1.0, 2.0, 1.0]];
        assert_eq!(Fit::new(&few, &[1.0; 2]), Err(Collinear(2)));
    }

    #[test]
    fn intervals_hold_as_often_as_they_say() {
        let (trials, points) = (2000, 6);
        let mut random = Normal::new(3, Purpose::Comparison);
        let mut noise = vec![0.0_f32; points + 1];
        let x: Vec<Vec<f64>> = (0..points).map(|i| vec![1.0, i as f64]).collect();
        let truth = |x: f64| 0.5 - 0.3 * x;
        let (mut slopes, mut predictions) = (0, 0);
        for _ in 0..trials {
            random.fill(&mut noise);
            let y: Vec<f64> =
                x.iter().zip(&noise).map(|(x, e)| truth(x[1]) + 0.1 * f64::from(*e)).collect();
            let fit = Fit::new(&x, &y).unwrap();
            let holds = |e: Estimate, truth: f64| (e.value - truth).abs() <= e.margin.unwrap();
            slopes += u32::from(holds(fit.combination(&[0.0, 1.0]), -0.3));
            let new = truth(12.0) + 0.1 * f64::from(noise[points]);
            predictions += u32::from(holds(fit.prediction(&[1.0, 12.0]), new));
        }
        // Three standard deviations of a count of 2000 with chance 0.95 are 29.
        for held in [slopes, predictions] {
            assert!((1871..=1929).contains(&held), "{held} of {trials}");
        }
    }
}
