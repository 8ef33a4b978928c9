"""The two functions that `monailabel.transform.post` imports."""


def make_grid(*args, **kwargs):
    raise NotImplementedError("this is a stand-in for torchvision")


def save_image(*args, **kwargs):
    raise NotImplementedError("this is a stand-in for torchvision")
