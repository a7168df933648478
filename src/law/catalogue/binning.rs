//! Sizes that a pipeline really makes where it makes one of a few and scales it to what was asked.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which of a few sizes is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Binning {
    /// The size that is asked.
    #[default]
    None,
    /// One of about the default's area, by the nearest aspect: PixArt's and Sana's
    /// `use_resolution_binning`. Less is not cheaper, and more not dearer.
    Aspect,
    /// HunyuanDiT's few shapes, as they are, and else the nearest by aspect, then by area.
    Shapes,
}

/// (height, width) of the sizes of about 1024 × 1024 px in diffusers' ASPECT_RATIO_1024_BIN; those
/// of other areas are these, scaled. The aspect is height over width.
const ASPECTS: [(f64, u32, u32); 33] = [
    (0.25, 512, 2048),
    (0.28, 512, 1856),
    (0.32, 576, 1792),
    (0.33, 576, 1728),
    (0.35, 576, 1664),
    (0.4, 640, 1600),
    (0.42, 640, 1536),
    (0.48, 704, 1472),
    (0.5, 704, 1408),
    (0.52, 704, 1344),
    (0.57, 768, 1344),
    (0.6, 768, 1280),
    (0.68, 832, 1216),
    (0.72, 832, 1152),
    (0.78, 896, 1152),
    (0.82, 896, 1088),
    (0.88, 960, 1088),
    (0.94, 960, 1024),
    (1.0, 1024, 1024),
    (1.07, 1024, 960),
    (1.13, 1088, 960),
    (1.21, 1088, 896),
    (1.29, 1152, 896),
    (1.38, 1152, 832),
    (1.46, 1216, 832),
    (1.67, 1280, 768),
    (1.75, 1344, 768),
    (2.0, 1408, 704),
    (2.09, 1472, 704),
    (2.4, 1536, 640),
    (2.5, 1600, 640),
    (3.0, 1728, 576),
    (4.0, 2048, 512),
];

/// (width, height) in diffusers' HunyuanDiT pipeline, by aspect.
const SHAPES: [&[(u32, u32)]; 5] = [
    &[(1024, 1024), (1280, 1280)],
    &[(1024, 768), (1152, 864), (1280, 960)],
    &[(768, 1024), (864, 1152), (960, 1280)],
    &[(1280, 768)],
    &[(768, 1280)],
];

/// Their aspects, width over height, as the pipeline compares them.
const SHAPE_ASPECTS: [f64; 5] = [1.0, 4.0 / 3.0, 3.0 / 4.0, 16.0 / 9.0, 9.0 / 16.0];

impl Binning {
    /// Width and height that are made where these are asked, of a model whose default is so wide.
    pub fn size(self, width: u32, height: u32, default: u32) -> (u32, u32) {
        let (w, h) = (f64::from(width.max(1)), f64::from(height.max(1)));
        match self {
            Self::None => (width, height),
            Self::Aspect => {
                let far = |aspect: f64| (aspect - h / w).abs();
                let nearest = ASPECTS.iter().min_by(|a, b| far(a.0).total_cmp(&far(b.0)));
                let scaled = |side: u32| side * default / 1024;
                nearest.map_or((width, height), |(_, h, w)| (scaled(*w), scaled(*h)))
            }
            Self::Shapes => {
                if SHAPES.concat().contains(&(width, height)) {
                    return (width, height);
                }
                let far = |n: usize| (SHAPE_ASPECTS[n] - w / h).abs();
                let aspect = (0..SHAPES.len()).min_by(|a, b| far(*a).total_cmp(&far(*b)));
                let area = |(w, h): &(u32, u32)| u64::from(*w) * u64::from(*h);
                let asked = u64::from(width) * u64::from(height);
                let shapes = SHAPES[aspect.unwrap_or(0)].iter();
                let nearest = shapes.min_by_key(|shape| area(shape).abs_diff(asked));
                nearest.copied().unwrap_or((width, height))
            }
        }
    }

    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl Serialize for Binning {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match self {
            Self::None => "none",
            Self::Aspect => "aspect",
            Self::Shapes => "shapes",
        })
    }
}

impl<'de> Deserialize<'de> for Binning {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Flag(bool),
            Name(String),
        }
        match Written::deserialize(from)? {
            Written::Flag(true) => Ok(Self::Aspect),
            Written::Flag(false) => Ok(Self::None),
            Written::Name(name) => match name.as_str() {
                "none" => Ok(Self::None),
                "aspect" => Ok(Self::Aspect),
                "shapes" => Ok(Self::Shapes),
                other => Err(serde::de::Error::custom(format!(
                    "{other:?} is not none, aspect or shapes"
                ))),
            },
        }
    }
}

impl JsonSchema for Binning {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Binning".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": ["none", "aspect", "shapes"] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_made_at_about_the_defaults_area_whatever_is_asked() {
        let aspect = |w, h, default| Binning::Aspect.size(w, h, default);
        assert_eq!(aspect(256, 256, 1024), (1024, 1024));
        assert_eq!(aspect(2048, 2048, 1024), (1024, 1024));
        assert_eq!(aspect(1280, 720, 1024), (1344, 768));
        assert_eq!(aspect(720, 1280, 1024), (768, 1344));
        assert_eq!(aspect(1024, 1024, 512), (512, 512));
        assert_eq!(aspect(100, 8192, 1024), (512, 2048));
        assert_eq!(Binning::None.size(100, 8192, 1024), (100, 8192));
    }

    #[test]
    fn a_shape_that_is_one_of_the_few_is_made_as_it_is() {
        let shape = |w, h| Binning::Shapes.size(w, h, 1024);
        assert_eq!(shape(1024, 768), (1024, 768));
        assert_eq!(shape(1280, 1280), (1280, 1280));
        assert_eq!(shape(512, 512), (1024, 1024));
        assert_eq!(shape(1200, 1200), (1280, 1280));
        assert_eq!(shape(1920, 1080), (1280, 768));
        assert_eq!(shape(1100, 830), (1152, 864));
    }

    #[test]
    fn it_is_written_by_name_or_as_the_flag_that_it_was() {
        let read = |text: &str| serde_yaml::from_str::<Binning>(text);
        assert_eq!(read("true").unwrap(), Binning::Aspect);
        assert_eq!(read("shapes").unwrap(), Binning::Shapes);
        let error = read("shape").unwrap_err().to_string();
        assert!(error.contains("none, aspect or shapes"), "{error}");
    }
}
