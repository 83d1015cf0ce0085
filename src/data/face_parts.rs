//! The choices that describe a cartoon face, and their colours.

use super::rng::PictureRng;

pub(super) type Color = [f32; 3];

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Mood {
    Smiling,
    Neutral,
    Frowning,
    Surprised,
}

pub(super) const MOODS: [(Mood, &str); 4] = [
    (Mood::Smiling, "smiling"),
    (Mood::Neutral, "neutral"),
    (Mood::Frowning, "frowning"),
    (Mood::Surprised, "surprised"),
];

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Hair {
    Bald,
    Short,
    Parted,
    Long,
    Curly,
    Bun,
}

const HAIRS: [(Hair, &str); 6] = [
    (Hair::Bald, "bald"),
    (Hair::Short, "short"),
    (Hair::Parted, "parted"),
    (Hair::Long, "long"),
    (Hair::Curly, "curly"),
    (Hair::Bun, "a bun of"),
];

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Hat {
    None,
    Beanie,
    Brim,
}

const HATS: [(Hat, &str); 5] =
    [(Hat::None, ""), (Hat::None, ""), (Hat::None, ""), (Hat::Beanie, ", beanie"), (Hat::Brim, ", hat")];

/// Colours are paint, not light: soft ones for the background, plain ones for cloth.
const BACKGROUNDS: [(Color, &str); 7] = [
    ([0.55, 0.78, 0.92], "blue"),
    ([0.62, 0.84, 0.66], "green"),
    ([0.97, 0.80, 0.55], "orange"),
    ([0.93, 0.66, 0.70], "pink"),
    ([0.75, 0.70, 0.90], "violet"),
    ([0.93, 0.91, 0.80], "cream"),
    ([0.42, 0.50, 0.60], "grey"),
];
const SKINS: [Color; 6] = [
    [1.00, 0.87, 0.77],
    [0.96, 0.78, 0.64],
    [0.88, 0.67, 0.50],
    [0.74, 0.52, 0.36],
    [0.56, 0.37, 0.25],
    [0.40, 0.26, 0.18],
];
const HAIR_COLORS: [(Color, &str); 6] = [
    ([0.10, 0.08, 0.08], "black"),
    ([0.29, 0.18, 0.10], "dark brown"),
    ([0.50, 0.32, 0.16], "brown"),
    ([0.90, 0.74, 0.38], "blond"),
    ([0.72, 0.30, 0.12], "red"),
    ([0.72, 0.72, 0.74], "grey"),
];
const IRISES: [(Color, &str); 3] =
    [([0.30, 0.18, 0.10], "brown"), ([0.20, 0.42, 0.70], "blue"), ([0.22, 0.50, 0.30], "green")];
const CLOTHS: [Color; 6] = [
    [0.80, 0.22, 0.22],
    [0.18, 0.36, 0.66],
    [0.16, 0.50, 0.38],
    [0.95, 0.95, 0.93],
    [0.28, 0.24, 0.32],
    [0.95, 0.70, 0.20],
];

/// A choice and its name in [`Face::describe`].
type Named<T> = (T, &'static str);

/// Everything that was chosen for one face. Lengths are in sides of the picture.
pub(super) struct Face {
    pub mood: usize,
    pub glasses: bool,
    pub round_glasses: bool,
    pub hair: Named<Hair>,
    pub hair_color: Named<Color>,
    pub hat: Named<Hat>,
    pub hat_color: Color,
    pub background: Named<Color>,
    pub skin: Color,
    pub iris: Named<Color>,
    pub shirt: Color,
    /// Middle of the face and half of its width and height.
    pub center: [f32; 2],
    pub radii: [f32; 2],
    /// Half the distance between the eyes.
    pub eyes: f32,
    pub eye_size: f32,
    /// Strength of the mood, about 1.
    pub strength: f32,
    /// Direction of the eyes, -1 to 1.
    pub gaze: f32,
}

impl Face {
    pub(super) fn new(rng: &mut PictureRng) -> Self {
        let (mood, glasses, round_glasses) = (rng.below(MOODS.len()), rng.chance(0.5), rng.chance(0.5));
        let (hair, hair_color, hat) = (rng.pick(&HAIRS), rng.pick(&HAIR_COLORS), rng.pick(&HATS));
        let (background, iris) = (rng.pick(&BACKGROUNDS), rng.pick(&IRISES));
        let (skin, shirt, hat_color) = (rng.pick(&SKINS), rng.pick(&CLOTHS), rng.pick(&CLOTHS));
        Face {
            mood,
            glasses,
            round_glasses,
            // No hat fits over a bun.
            hair: if hat.0 != Hat::None && hair.0 == Hair::Bun { HAIRS[1] } else { hair },
            hair_color,
            hat,
            hat_color,
            background,
            skin,
            iris,
            shirt,
            center: [0.5 + rng.bell(0.008), 0.50 + rng.bell(0.008)],
            radii: [0.235 * (1.0 + rng.bell(0.03)), 0.285 * (1.0 + rng.bell(0.03))],
            eyes: 0.105 * (1.0 + rng.bell(0.03)),
            eye_size: 0.044 * (1.0 + rng.bell(0.05)),
            strength: 1.0 + rng.bell(0.10),
            gaze: rng.bell(0.35),
        }
    }

    /// Number of its class: two for each mood, without and with glasses.
    pub(super) fn label(&self) -> u32 {
        self.mood as u32 * 2 + u32::from(self.glasses)
    }

    /// `smiling, round glasses, long red hair, hat, blue eyes, pink background`.
    pub(super) fn describe(&self) -> String {
        let hair = match self.hair {
            (Hair::Bald, name) => name.to_owned(),
            (_, name) => format!("{name} {} hair", self.hair_color.1),
        };
        let glasses = match (self.glasses, self.round_glasses) {
            (false, _) => "",
            (true, true) => ", round glasses",
            (true, false) => ", square glasses",
        };
        let (mood, hat) = (MOODS[self.mood].1, self.hat.1);
        format!("{mood}{glasses}, {hair}{hat}, {} eyes, {} background", self.iris.1, self.background.1)
    }
}

/// The names of the labels.
pub(super) fn classes() -> Vec<String> {
    MOODS.iter().flat_map(|(_, name)| [(*name).to_owned(), format!("{name}, glasses")]).collect()
}
