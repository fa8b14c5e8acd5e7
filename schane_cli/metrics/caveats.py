"""When each metric misleads: one or two sentences, by the metric's name in the registry."""

_UNEVEN = "Evenly spread noise scores 1 too, so a high value says nothing about the use of the embedding."
_OFFSET = "Vectors are not centred: a common offset of all of them lowers it however they spread around it."
_MACHINE = "It changes with whatever else the machine was doing: compare runs on the same, otherwise idle machine."

CAVEATS = {
    "accuracy": (
        "Where classes differ in size, naming the largest class every time scores its share: read balanced accuracy "
        "beside it."
    ),
    "top5_accuracy": (
        "With few classes it says little: of ten classes, five guesses hold the right one half of the time."
    ),
    "balanced_accuracy": (
        "A class of three test images counts as much as one of three hundred, so that one image of a small class "
        "can move it by whole points."
    ),
    "macro_f1": (
        "It hangs on the smallest classes, and it changes with the mix of classes in the test set, since precision "
        "does."
    ),
    "ece": (
        "Chance adds to it: on few images a perfectly calibrated model is not at 0 (see the ECE of a calibrated "
        "model). Errors of opposite sign cancel within a bin, and a model that always states the class frequencies "
        "is calibrated and useless."
    ),
    "ece_debiased": (
        "On few images it can be 0 because the noise is larger than the gap. Errors of opposite sign still cancel "
        "within a bin."
    ),
    "ece_calibrated": "It says nothing of the model: it is the ECE that chance alone would give.",
    "nll": (
        "One confident mistake can outweigh a hundred right answers, so the more accurate model may have the higher "
        "NLL. Temperature scaling lowers it without changing a single prediction."
    ),
    "brier": (
        "It mixes accuracy and calibration: a vague, right model and a sharp, sometimes wrong one can have the same "
        "value."
    ),
    "corruption_accuracy": (
        "A model that was trained with such blur or noise has seen the corruptions before. The mean hides a kind on "
        "which the model fails altogether."
    ),
    "auroc": (
        "It depends on the other set: pictures of another sort altogether are told apart by almost any model. It "
        "judges a ranking and says nothing about a threshold."
    ),
    "fpr95": "The threshold rests on the lowest 5 % of the in-distribution scores, so with few images it jumps.",
    "fewshot_accuracy": (
        "All episodes draw from the same images: more of them shrink the interval without anything new being known "
        "about other images or classes. Balanced episodes flatter transductive classifiers."
    ),
    "disjoint_accuracy": (
        "Few disjoint episodes fit into a small test set, and all have the same classes: it says nothing about others."
    ),
    "confidence": (
        "Without val images it is not calibrated, and as a rule too high. On an image of none of the classes it can "
        "be high all the same."
    ),
    "kept": (
        "An overconfident model keeps more images and deserves to less: read the accuracy above that confidence "
        "beside it."
    ),
    "kept_accuracy": "Any model improves when it keeps fewer images: compare models where they keep equal shares.",
    "support_accuracy": "Photos of one burst are near-copies of each other, and make it too high.",
    "train_seconds": _MACHINE,
    "total_seconds": f"Start, evaluation and pictures count, so short runs look slow. {_MACHINE}",
    "views_forwarded": "A view costs more with more pixels or a larger backbone: compare it at equal ones only.",
    "peak_memory_bytes": (
        "On CUDA it is what torch allocated, to which the driver adds; on a CPU it is the whole process, decoded "
        "images included."
    ),
    "energy_joules": (
        "The meter is the device's own: processor, memory and cooling are not on a GPU's, and whatever else runs on "
        "the device is."
    ),
    "images_per_second": f"It counts images and not views. {_MACHINE}",
    "data_wait_percent": (
        "On CUDA the kernels already queued go on while the loop waits, so a few percent may cost nothing."
    ),
    "isotropy": f"It rests on two directions out of all. {_OFFSET}",
    "isotropy of unit vectors": f"It rests on two directions out of all, and unit vectors crowd near 1. {_OFFSET}",
    "isotropy, within class": (
        "It rests on two directions out of all. With few images per class the class mean follows each of them, and "
        "the spread looks smaller than it is."
    ),
    "effective rank": (
        "It cannot exceed the number of images, and noise raises it as structure does: compare it on the same "
        "images and the same number of dimensions."
    ),
    "effective rank, within class": (
        "It cannot exceed the number of images less the number of classes, and noise raises it as structure does."
    ),
    "IsoScore": _UNEVEN,
    "IsoScore, within class": _UNEVEN,
    "average cosine": (
        "A common offset raises it: features after a ReLU have no negative entries, and so high cosines whatever "
        "they show."
    ),
    "average cosine, within class": (
        "An embedding that maps every image to one point scores 1: read it beside that of negative pairs."
    ),
    "average cosine of negative pairs": (
        "A common offset of all vectors raises it without bringing classes any closer together than they were."
    ),
    "AUC of positive over negative cosines": (
        "It compares pairs of different images, too: one loose class among tight ones lowers it although each "
        "image's neighbours are right. Large classes make most of the pairs."
    ),
    "alignment, within class": "An embedding that maps every image to one point scores 0: read uniformity beside it.",
    "uniformity": "Random vectors score best: read alignment beside it.",
    "uniformity, within class": "A class in two tight groups can score as one that is spread evenly does.",
    "kNN accuracy": (
        "Near-copies among the images make it high without any generalisation. With fewer than k images in a class, "
        "other classes fill the vote."
    ),
    "recall": (
        "One hit among k is enough, so it grows with k and with the size of the classes: compare it on the same images."
    ),
    "mAP@R": "It depends on the number of images per class, so values on different sets or subsets cannot be compared.",
    "linear-probe accuracy": (
        "It judges the embedding and not the model's own classifier. With more dimensions than images the fit is "
        "nearly free, and the penalty decides."
    ),
    "silhouette": (
        "It rewards round clusters: a class of two tight groups far apart scores low although it is easy to separate."
    ),
    "NMI of k-means": (
        "With few images per cluster even random labels share information with it. k-means looks for round clusters "
        "of similar spread and misses others."
    ),
    "Fisher ratio": "One class far from all others makes it large while the rest overlap.",
    "NC1": (
        "On training images it falls with every epoch, whether or not classes of new images come apart. It takes "
        "more images per class than most few-shot sets have."
    ),
}
