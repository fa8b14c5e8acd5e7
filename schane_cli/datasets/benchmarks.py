"""The benchmarks that schane knows by name: what each is, who made it, where its files come from.

Facts only, so that listing them does not load torch; the files are read by `readers`, `cifar` and `imagenet`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from schane_cli.datasets.dataset import CARVED, VAL_IS_TEST, Archive, Dataset, register, require_ready
from schane_cli.terminal import Terminal

if TYPE_CHECKING:
    from schane_cli.images.imageset import ImageSet

_CALTECH = "https://data.caltech.edu/records"
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_INAT = "https://ml-inat-competition-datasets.s3.amazonaws.com/2017"
_PLACES = "http://data.csail.mit.edu/places/places365"
_RAVI = (
    "https://raw.githubusercontent.com/twitter-research/meta-learning-lstm/"
    "0cffa2481619ce643d0951bd637bf05b23ef827a/data/miniImagenet"
)


@register
class Digits(Dataset):
    """scikit-learn digits, 8 x 8."""

    name = "digits"
    title = "scikit-learn digits, 8 x 8"
    licence = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits)"
    source = "https://archive.ics.uci.edu/dataset/80"
    classes = 10
    counts = {"all": 1797}
    splits = "no official split: test and val are carved out by the recipe's rule"
    layouts = ((),)

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import readers

        return readers.digits(self.folder(root))


@register
class CUB200(Dataset):
    """CUB-200-2011 birds."""

    name = "cub200"
    title = "CUB-200-2011 birds"
    licence = "non-commercial research and education only"
    source = "https://www.vision.caltech.edu/datasets/cub_200_2011/"
    classes = 200
    counts = {"train": 5_994, "test": 5_794}
    splits = f"official train_test_split.txt; {CARVED}; few-shot classes 100/50/50"
    layouts = (
        (
            "CUB_200_2011/images",
            "CUB_200_2011/images.txt",
            "CUB_200_2011/classes.txt",
            "CUB_200_2011/image_class_labels.txt",
            "CUB_200_2011/train_test_split.txt",
        ),
    )
    archives = (
        Archive(
            f"{_CALTECH}/65de6-vp158/files/CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78", ("CUB_200_2011",)
        ),
    )
    download = "1.2 GB"

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import readers

        require_ready(self, root)
        return readers.cub200(self.folder(root))

    def class_halves(self, count: int) -> dict[str, range]:
        """The field's 100/50/50: class number odd: train, 2 mod 4: val, 0 mod 4: test."""
        return {"train": range(0, count, 2), "val": range(1, count, 4), "test": range(3, count, 4)}


@register
class Caltech256(Dataset):
    """Caltech-256."""

    name = "caltech256"
    title = "Caltech-256"
    licence = "CC BY 4.0"
    source = "https://data.caltech.edu/records/nyy15-4j048"
    classes = 257
    counts = {"all": 30_607}
    splits = "no official split: test and val are carved out by the recipe's rule; clutter is the 257th class"
    layouts = (("256_ObjectCategories/*",),)
    archives = (
        Archive(
            f"{_CALTECH}/nyy15-4j048/files/256_ObjectCategories.tar",
            "67b4f42ca05d46448c6bb8ecd2220f6d",
            ("256_ObjectCategories",),
        ),
    )
    download = "1.2 GB"

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import readers

        require_ready(self, root)
        return readers.caltech256(self.folder(root))


@register
class Flowers102(Dataset):
    """Oxford Flowers-102."""

    name = "flowers102"
    title = "Oxford Flowers-102"
    licence = "none stated by its authors; research use"
    source = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    classes = 102
    counts = {"train": 1_020, "val": 1_020, "test": 6_149}
    splits = "official train, val and test; --set data.train_on=trainval trains on val too, as some papers do"
    layouts = (("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat"),)
    archives = (
        Archive(
            f"{_VGG}/flowers/102/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", ("jpg",), below="flowers-102"
        ),
        Archive(
            f"{_VGG}/flowers/102/imagelabels.mat",
            "e0620be6f572b9609742df49c70aed4d",
            ("imagelabels.mat",),
            below="flowers-102",
            plain=True,
        ),
        Archive(
            f"{_VGG}/flowers/102/setid.mat",
            "a5357ecc9cb78c4bef273ce3793fc85c",
            ("setid.mat",),
            below="flowers-102",
            plain=True,
        ),
    )
    download = "345 MB"

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import readers

        require_ready(self, root)
        return readers.flowers102(self.folder(root))


@register
class Pets(Dataset):
    """Oxford-IIIT Pets."""

    name = "pets"
    title = "Oxford-IIIT Pets"
    licence = "CC BY-SA 4.0"
    source = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    classes = 37
    counts = {"train": 3_680, "test": 3_669}
    splits = f"official trainval and test; {CARVED}"
    layouts = (
        (
            "oxford-iiit-pet/images",
            "oxford-iiit-pet/annotations/trainval.txt",
            "oxford-iiit-pet/annotations/test.txt",
        ),
    )
    archives = (
        Archive(
            f"{_VGG}/pets/data/images.tar.gz",
            "5c4f3ee8e5d25df40f4fd59a7f44e54c",
            ("images",),
            below="oxford-iiit-pet",
        ),
        Archive(
            f"{_VGG}/pets/data/annotations.tar.gz",
            "95a8c909bbe2e81eed6a22bccdf3f68f",
            ("annotations",),
            below="oxford-iiit-pet",
        ),
    )
    download = "811 MB"

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import readers

        require_ready(self, root)
        return readers.pets(self.folder(root))


@register
class INat2017(Dataset):
    """iNaturalist 2017."""

    name = "inat2017"
    title = "iNaturalist 2017"
    licence = "non-commercial research and education only"
    source = "https://github.com/visipedia/inat_comp/tree/master/2017"
    classes = 5_089
    counts = {"train": 579_184, "test": 95_986}
    splits = VAL_IS_TEST
    layouts = (("train_val_images", "train2017.json", "val2017.json"),)
    archives = (
        Archive(f"{_INAT}/train_val_images.tar.gz", "7c784ea5e424efaec655bd392f87301f", ("train_val_images",)),
        Archive(f"{_INAT}/train_val2017.zip", "444c835f6459867ad69fcb36478786e7", ("train2017.json", "val2017.json")),
    )
    download = "186 GB"

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import readers

        require_ready(self, root)
        return readers.inat2017(self.folder(root))


@register
class Places365(Dataset):
    """Places365-Standard, 256 px."""

    name = "places365"
    title = "Places365-Standard, 256 px"
    licence = "non-commercial research and education only"
    source = "http://places2.csail.mit.edu/"
    classes = 365
    counts = {"train": 1_803_460, "test": 36_500}
    splits = VAL_IS_TEST
    layouts = (
        (
            "data_256_standard",
            "val_256",
            "categories_places365.txt",
            "places365_train_standard.txt",
            "places365_val.txt",
        ),
    )
    archives = (
        Archive(
            f"{_PLACES}/filelist_places365-standard.tar",
            "35a0585fee1fa656440f3ab298f8479c",
            ("categories_places365.txt", "places365_train_standard.txt", "places365_val.txt"),
        ),
        Archive(f"{_PLACES}/val_256.tar", "e27b17d8d44f4af9a78502beb927f808", ("val_256",)),
        Archive(
            f"{_PLACES}/train_256_places365standard.tar",
            "53ca1c756c3d1e7809517cc47c5561c5",
            ("data_256_standard",),
            renames=(("data_256", "data_256_standard"),),
        ),
    )
    download = "25 GB"

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import readers

        require_ready(self, root)
        return readers.places365(self.folder(root))


@register
class CIFAR100(Dataset):
    """CIFAR-100."""

    name = "cifar100"
    title = "CIFAR-100"
    licence = "none stated by its authors; research use"
    source = "https://www.cs.toronto.edu/~kriz/cifar.html"
    classes = 100
    counts = {"train": 50_000, "test": 10_000}
    splits = f"official train and test; {CARVED}"
    layouts = (
        ("cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"),
        ("train/*", "test/*"),
        ("**/train-*.parquet", "**/test-*.parquet"),
    )
    archives = (
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            ("cifar-100-python",),
        ),
    )
    download = "169 MB"
    by_hand = (
        "also read: Hugging Face's parquet files (uoft-cs/cifar100) in data/, or class folders in train/ and test/"
    )

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import cifar

        return cifar.cifar100(cifar.cifar_folder(root))


class _FromCIFAR100(Dataset):
    """A few-shot set made of CIFAR-100's images, train and test merged."""

    licence = "as CIFAR-100"
    classes = 100
    over = "cifar100"
    fewshot = True
    images_per_class = 600

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import cifar

        return cifar.fewshot_parts(cifar.cifar_folder(root), self.name)


@register
class CIFARFS(_FromCIFAR100):
    """CIFAR-FS (few-shot)."""

    name = "cifarfs"
    title = "CIFAR-FS (few-shot)"
    source = "https://arxiv.org/abs/1805.08136"
    counts = {"train": 38_400, "val": 9_600, "test": 12_000}
    splits = "64 / 16 / 20 classes of 600 images, train and test of CIFAR-100 merged"


@register
class FC100(_FromCIFAR100):
    """FC100 (few-shot)."""

    name = "fc100"
    title = "FC100 (few-shot)"
    source = "https://arxiv.org/abs/1805.10123"
    counts = {"train": 36_000, "val": 12_000, "test": 12_000}
    splits = "60 / 20 / 20 classes of 600 images by superclass, train and test of CIFAR-100 merged"


@register
class ImageNet1k(Dataset):
    """ImageNet-1k (ILSVRC-2012)."""

    name = "imagenet1k"
    title = "ImageNet-1k (ILSVRC-2012)"
    licence = "non-commercial research and education only, after registration"
    source = "https://image-net.org/download.php"
    classes = 1_000
    counts = {"train": 1_281_167, "test": 50_000}
    splits = VAL_IS_TEST
    layouts = (("train/n*", "val/n*"),)
    by_hand = (
        "ImageNet requires a signed form: register at https://image-net.org, put ILSVRC2012_img_train.tar, "
        "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz into the folder, then run prepare to unpack them; "
        "or put class folders n01440764/ ... into train/ and val/; or, with access on Hugging Face, use "
        "--dataset hfds:ILSVRC/imagenet-1k"
    )

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import imagenet

        require_ready(self, root)
        return imagenet.imagenet1k(self.folder(root))

    def unpack_by_hand(self, root: Path, terminal: Terminal) -> None:
        """The archives that the user has put into the folder, into class folders."""
        from schane_cli.datasets.imagenet_archives import unpack_imagenet

        unpack_imagenet(self.folder(root), self.by_hand, terminal)


@register
class MiniImageNet(Dataset):
    """miniImageNet (few-shot)."""

    name = "miniimagenet"
    title = "miniImageNet (few-shot)"
    licence = "as ImageNet-1k; the image lists MIT"
    source = "https://github.com/twitter-research/meta-learning-lstm"
    classes = 100
    counts = {"train": 38_400, "val": 9_600, "test": 12_000}
    splits = "Ravi and Larochelle's lists: 64 / 16 / 20 classes of 600 images of ImageNet-1k train"
    layouts = (("train.csv", "val.csv", "test.csv"),)
    archives = (
        Archive(f"{_RAVI}/train.csv", "9525e1538f67719f18f1936bf8d0782d", ("train.csv",), plain=True),
        Archive(f"{_RAVI}/val.csv", "ce315ce99b41fbf84fa6acd69315d918", ("val.csv",), plain=True),
        Archive(f"{_RAVI}/test.csv", "5b89df877c6cbe5d291e43118a2a9591", ("test.csv",), plain=True),
    )
    download = "2 MB of lists"
    by_hand = (
        "the images are ImageNet's: they are read from imagenet1k/train, or from images/ beside the lists "
        "where they are named as in them; timm/mini-imagenet is another set"
    )
    over = "imagenet1k"
    fewshot = True
    images_per_class = 600

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import imagenet

        require_ready(self, root)
        return imagenet.miniimagenet(self.folder(root), ImageNet1k().folder(root))

    def fewshot_notes(self, parts: Mapping[str, "ImageSet"]) -> list[str]:
        """As `Dataset.fewshot_notes`."""
        from schane_cli.datasets.imagenet import unlike_ravi

        warning = unlike_ravi(parts)
        return [] if warning is None else [warning]


@register
class TieredImageNet(Dataset):
    """tieredImageNet (few-shot)."""

    name = "tieredimagenet"
    title = "tieredImageNet (few-shot)"
    licence = "as ImageNet-1k"
    source = "https://arxiv.org/abs/1803.00676"
    classes = 608
    counts = {"train": 448_695, "val": 124_261, "test": 206_209}
    splits = "351 / 97 / 160 classes of ImageNet-1k train, by superclass"
    over = "imagenet1k"
    fewshot = True

    def read(self, root: Path) -> Mapping[str, "ImageSet"]:
        """As `Dataset.read`."""
        from schane_cli.datasets import imagenet

        require_ready(self, root)
        return imagenet.tieredimagenet(ImageNet1k().folder(root))
