//! Painting with signed distances: shapes with soft edges, one pixel wide at any size, and strokes of a pen.

/// A point, x to the right, y down.
pub(super) type Point = [f32; 2];

/// A colour picture in the unit square, painted one shape over another.
pub(super) struct Canvas<'a> {
    size: usize,
    /// `[size, size, 3]` in [0, 1] while painting.
    pixels: &'a mut [f32],
}

impl<'a> Canvas<'a> {
    /// # Panics
    /// If `pixels` is not `[size, size, 3]`.
    pub(super) fn new(pixels: &'a mut [f32], size: usize, background: [f32; 3]) -> Self {
        assert_eq!(pixels.len(), size * size * 3, "Canvas: not [{size}, {size}, 3]");
        for pixel in pixels.chunks_exact_mut(3) {
            pixel.copy_from_slice(&background);
        }
        Canvas { size, pixels }
    }

    /// Pixels of a side.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Paints where `distance` is negative; it is zero on the edge and grows by 1 a unit outwards. `low`
    /// to `high` is a box around the shape: no pixel outside is visited.
    pub(super) fn fill(&mut self, low: Point, high: Point, color: [f32; 3], distance: impl Fn(Point) -> f32) {
        let size = self.size as f32;
        let span = |k: usize| {
            let first = (low[k] * size - 1.0).max(0.0) as usize;
            (first, ((high[k] * size + 1.0).max(0.0) as usize + 1).min(self.size))
        };
        let ((left, right), (top, bottom)) = (span(0), span(1));
        for y in top..bottom {
            for x in left..right {
                let at = [(x as f32 + 0.5) / size, (y as f32 + 0.5) / size];
                let cover = (0.5 - distance(at) * size).clamp(0.0, 1.0);
                if cover > 0.0 {
                    let i = (y * self.size + x) * 3;
                    for (v, c) in self.pixels[i..i + 3].iter_mut().zip(color) {
                        *v += cover * (c - *v);
                    }
                }
            }
        }
    }

    pub(super) fn ellipse(&mut self, center: Point, radii: Point, color: [f32; 3]) {
        let (low, high) = around(center, radii);
        self.fill(low, high, color, |p| ellipse(p, center, radii));
    }

    /// `corner`: radius of the corners.
    pub(super) fn rounded_box(&mut self, center: Point, radii: Point, corner: f32, color: [f32; 3]) {
        let (low, high) = around(center, radii);
        self.fill(low, high, color, |p| rounded_box(p, center, radii, corner));
    }

    /// A line through `points`, with round ends, at least a pixel thick.
    pub(super) fn line(&mut self, points: &[Point], radius: f32, color: [f32; 3]) {
        let radius = radius.max(0.5 / self.size as f32);
        let extreme = |k: usize, f: fn(f32, f32) -> f32| points.iter().map(|p| p[k]).reduce(f).unwrap_or(0.0);
        let low = [extreme(0, f32::min) - radius, extreme(1, f32::min) - radius];
        let high = [extreme(0, f32::max) + radius, extreme(1, f32::max) + radius];
        self.fill(low, high, color, |p| {
            let nearest = points.windows(2).map(|w| segment(p, w[0], w[1]).0).fold(f32::INFINITY, f32::min);
            nearest.sqrt() - radius
        });
    }

    /// Ends painting: the pixels go from [0, 1] to [-1, 1].
    pub(super) fn finish(self) {
        for v in self.pixels {
            *v = *v * 2.0 - 1.0;
        }
    }
}

/// The box around an ellipse, as its two corners.
pub(super) fn around(center: Point, radii: Point) -> (Point, Point) {
    ([center[0] - radii[0], center[1] - radii[1]], [center[0] + radii[0], center[1] + radii[1]])
}

/// Distance to an ellipse, to first order (exact on the edge, which is where it matters).
pub(super) fn ellipse([x, y]: Point, [cx, cy]: Point, [rx, ry]: Point) -> f32 {
    let (u, v) = ((x - cx) / rx, (y - cy) / ry);
    let k = (u * u + v * v).sqrt();
    let slope = ((u / rx).powi(2) + (v / ry).powi(2)).sqrt();
    if slope < 1e-6 { -rx.min(ry) } else { k * (k - 1.0) / slope }
}

/// Distance to a box with rounded corners; `radii` is half of its width and height.
pub(super) fn rounded_box([x, y]: Point, [cx, cy]: Point, [rx, ry]: Point, corner: f32) -> f32 {
    let (dx, dy) = ((x - cx).abs() - rx + corner, (y - cy).abs() - ry + corner);
    dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0) - corner
}

/// Squared distance to the segment from `a` to `b`, and how far along it the nearest point lies, 0 to 1.
pub(super) fn segment(p: Point, a: Point, b: Point) -> (f32, f32) {
    let (d, e) = ([b[0] - a[0], b[1] - a[1]], [p[0] - a[0], p[1] - a[1]]);
    let along = ((d[0] * e[0] + d[1] * e[1]) / (d[0] * d[0] + d[1] * d[1]).max(1e-12)).clamp(0.0, 1.0);
    let (x, y) = (e[0] - along * d[0], e[1] - along * d[1]);
    (x * x + y * y, along)
}

/// A smooth curve through `points` (Catmull & Rom 1974), `steps` segments between neighbours. A point that
/// stands twice in a row is a corner.
pub(super) fn curve(points: &[Point], steps: usize, out: &mut Vec<Point>) {
    out.extend(points.first());
    for i in 0..points.len().saturating_sub(1) {
        let (a, b) = (points[i], points[i + 1]);
        if a == b {
            continue;
        }
        let before = if i == 0 || points[i - 1] == a { None } else { Some(points[i - 1]) };
        let after = points.get(i + 2).filter(|&&p| p != b);
        for step in 1..=steps {
            let t = step as f32 / steps as f32;
            let at = |k: usize| {
                // At an end the missing neighbour is the mirror image of the other one.
                let p = before.map_or(2.0 * a[k] - b[k], |p| p[k]);
                let q = after.map_or(2.0 * b[k] - a[k], |q| q[k]);
                let (da, db) = ((b[k] - p) / 2.0, (q - a[k]) / 2.0);
                let (t2, t3) = (t * t, t * t * t);
                a[k] * (2.0 * t3 - 3.0 * t2 + 1.0)
                    + b[k] * (3.0 * t2 - 2.0 * t3)
                    + da * (t3 - 2.0 * t2 + t)
                    + db * (t3 - t2)
            };
            out.push([at(0), at(1)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_zero_on_the_edge_and_negative_inside() {
        for (p, inside) in [([0.5, 0.7], 0.0), ([0.8, 0.5], 0.0), ([0.5, 0.5], -1.0), ([0.9, 0.5], 1.0)] {
            for d in [ellipse(p, [0.5; 2], [0.3, 0.2]), rounded_box(p, [0.5; 2], [0.3, 0.2], 0.05)] {
                assert!((d * inside > 0.0) || (inside == 0.0 && d.abs() < 1e-6), "{p:?}: {d}");
            }
        }
        assert_eq!(segment([3.0, 2.0], [0.0, 0.0], [4.0, 0.0]), (4.0, 0.75));
        assert_eq!(segment([-3.0, 4.0], [0.0, 0.0], [4.0, 0.0]), (25.0, 0.0));
    }

    #[test]
    fn curves_pass_through_their_points_and_turn_at_corners() {
        let points = [[0.0, 0.0], [1.0, 0.5], [1.0, 0.5], [0.0, 1.0]];
        let mut line = Vec::new();
        curve(&points, 4, &mut line);
        assert_eq!((line.len(), line[0], line[4], line[8]), (9, points[0], points[1], points[3]));
        assert!(line.iter().all(|p| p[0] <= 1.0), "a corner is not overshot");
        let mut smooth = Vec::new();
        curve(&[[0.0, 0.0], [1.0, 0.5], [0.0, 1.0]], 4, &mut smooth);
        assert!(smooth[3][0] > line[3][0], "without the corner the curve is round");
    }

    #[test]
    fn an_ellipse_covers_its_area_at_any_size() {
        for size in [16, 50, 64] {
            let mut pixels = vec![0.0; size * size * 3];
            let mut canvas = Canvas::new(&mut pixels, size, [0.0; 3]);
            canvas.ellipse([0.5, 0.45], [0.3, 0.2], [1.0, 0.5, 0.0]);
            canvas.finish();
            let area: f32 = pixels.iter().step_by(3).map(|v| v * 0.5 + 0.5).sum();
            let expected = std::f32::consts::PI * 0.3 * 0.2 * (size * size) as f32;
            assert!((area / expected - 1.0).abs() < 0.02, "{size}: {area} of {expected}");
            assert!(pixels.iter().skip(2).step_by(3).all(|&v| v == -1.0));
        }
    }
}
