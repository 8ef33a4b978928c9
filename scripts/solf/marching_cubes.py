"""Area and volume of each of the 256 cells of marching cubes, so that a surface is measured without its mesh."""

from __future__ import annotations

from itertools import product

import numpy as np

CORNERS = np.array(list(product((0, 1), repeat=3)))  # bit n of a configuration is corner n
EDGE_MIDPOINTS = np.array([p for p in product((0.0, 0.5, 1.0), repeat=3) if p.count(0.5) == 1])
EDGE_LETTERS = "abcdefghijkl"

# A word per configuration, three letters per triangle; written by tools/marching_cubes_table.py
_TRIANGLES = """\
- aeb acf cebfec bgd agdega cfadbg cgdcfgfeg cdh aebcdh fdhadf debdhehfe bhcghb ahcaehegh bfabgfghf fehheg ije ibajbi
acfeij icfijcjbc eijbgd gijgdidai faceijdbg ijgfigfgdfdc cdheij bijbaicdh fdhfadeij dhfdfjdjbjfi bhcbghjei
cghcigcaijgi ijefagfghgab ijgigffgh fki fkiaeb akicka ekiebkbck fkidbg agdaegifk akiackdbg dckdkedegiek cdhfki
baecdhifk kdhkidiad dhkbdkbkibie hbghcbfki ifkaecehcegh kiakagkghgab kiekehheg fjekjf fbafkbkjb ajeacjckj ckbbkj
jfkjefbgd fkjfjdfdadjg dbgacecjeckj gdcgcjjck fjefkjhcd hcdfkakbakjb eadedkekjhkd dhkdkbbkj fkeekjhcbhbg
kjakafjgacahgha ghagabhkaeajkja ghkjgk jlg baegjl acfgjl ecfebcgjl jdbldj jaejlalda djldbjacf cldcelcfeejl hcdlgj
cdhbaelgj dfadhflgj lgjdhbhebhfe hjlhcjcbj hjlcjhcejcae abjajhahflhj jlhjheehf leigel blgbalail elgeilfac filflbfbcgbl
edbeidild aidild cfadbidilibe cficiddil leilgedhc cdhbagalgail igeilgadfdhf hfbhbdfibgblilb ecbelceillhc hcahallai
ilbibelhbabfhfb hfilhi ifkjlg aebifkgjl kackiajlg gjlebibkibck jdbjldkif fkiaelaldlej bldbjlckakia ldelejdceiekcke
fkihcdjlg lgjcdhaebifk jlgkihidhiad biebkibdkhkdgjl fkihclcjlcbj clhcjlcajejafki iahihkabhlhjbjh jlhjhekihieh
lfklgfgef blgalbaklafk ageakgackklg lgblbkkbc kefkdekldbed fklflaald ckeceaklebedlde ckldcl cdhfkgfgegkl
agbalgaflklfcdh gekgkleakhkdadk lgblbkdhbhkb cblclhbelklfefl hcahalfkakla abeklh hkl hlk aebkhl fackhl cebcfekhl
dbghlk gaegdahlk acfdbgkhl khlcfdfgdfeg clkdlc clkcdlbae flkfaladl kfekedkdlbde lbglkbkcb aegagkakckgl bglablalkakf
lkflfggfe khlije ibaijblkh cfakhleij hlkcfjcjbjfi bgdjeihlk khlijdidadjg acfijedbgkhl fdcfgdfigjgikhl lcdlkcije
cdkkdlbaibij eijfakalkadl jbfjfibdfkfldlf eijbgkbkckgl kcgkglcagjgiaig akfalkablglbeij lkflfgijfjgf hiflih ihlifhaeb
hachlalia ebceclelilch hifhligdb aeddegifhihl bgdaclalilch liclchiecdcgegc cifcdidli baecdfdifdli adiidl ebdediidl
flifblfcbglb egcecaglcfcilic bglblaali liegle jhljehefh ajbahjafhljh hljchjcjecea hljhjccjb dbghlehefelj
dajdjgafjljhfhj ceacjechjljhdbg gdcgcjhlcljc cdlclecefelj dlfdfcljfafbjbf jeajallad jbdljd efleljfclglbcbl afcglj
jeajalbgagla jgl gkhjkg gkhgjkeba kgjkhgcfa hjkhgjfecebc dkhdbkbjk edaekdejkhdk fackhbkbjbhd fedfdcejdhdkjkd gcdgjcjkc
aebcdjcjkjdg fjkfdjfaddgj jkdjdgkfdbdefed cbkbjk aejajccjk fabfbkkbj fejkfj keikhehge kaikgakhggba acfeihehghik
hgihikgbificbci dkhbkdbikbei khdkdiida bhdbkhbekikeacf khdkdicfdfid dkcdekdgeike aigagbikgdgckcg adkakfdgkikegek
fikdgb eikekbbkc aikcak eikekbfakabk fik igjifgfhg aebifjfgjfhg chgcgiciajig bcibiechijighgi dfhdjfdbjjif
fhjfjihdjejadaj bjhbhdjihchaiah chdeji igjfgifdgfcd fjifgjfcgdgcaeb gjigiddia gjigidebibdi ifcicjjcb ifcicjaecejc
iabjib iej fhehge bafbfggfh achaheehg bchgbh dbedehhef fhdafd dbedehaceche chd cdgcgffge bafbfgcdfdgf adgeag bdg
cbefce afc abe -
"""


def area_table(axes_mm: np.ndarray) -> np.ndarray:
    """Compute the area of the mesh inside each cell.

    Args:
        axes_mm: the columns are the steps from voxel to voxel, in mm; they may be of any length and direction.

    Returns:
        Areas in mm2 by configuration.

    Shape:
        (3, 3) becomes (256,).
    """
    triangles, configurations = _triangles()
    corners_mm = triangles @ axes_mm.T
    normals = np.cross(corners_mm[:, 1] - corners_mm[:, 0], corners_mm[:, 2] - corners_mm[:, 0])
    return np.bincount(configurations, weights=np.linalg.norm(normals, axis=1) / 2, minlength=256)


def volume_table() -> np.ndarray:
    """Compute which share of each cell lies inside the mesh.

    The mesh is closed where cells meet, so that these shares add up to the volume that it encloses. In a cell the
    divergence theorem gives it from the triangles and the inner part of the three faces that corner 0 is not on.

    Returns:
        (256,), from 0 to 1 by configuration; an affine scales all alike.
    """
    triangles, configurations = _triangles()
    cones = np.bincount(configurations, weights=np.linalg.det(triangles) / 6, minlength=256)
    inside = (np.arange(256)[:, None] >> np.arange(8)) & 1
    faces = [_inner_face_area(inside[:, CORNERS[:, axis] == 1]) for axis in range(3)]
    return cones + np.sum(faces, axis=0) / 3


def reordered(order: np.ndarray) -> np.ndarray:
    """Map the configurations of a transposed volume to those of the volume itself.

    Args:
        order: as given to `numpy.transpose`.

    Returns:
        (256,), configuration by configuration of the transposed volume.
    """
    corners = np.empty_like(CORNERS)
    corners[:, order] = CORNERS
    return ((np.arange(256)[:, None] >> np.arange(8)) & 1) @ (1 << (corners @ (4, 2, 1)))


def _triangles() -> tuple[np.ndarray, np.ndarray]:
    """Return all triangles in units of the cell, (N, 3 corners, 3), and the configuration of each, (N,)."""
    words = [word.strip("-") for word in _TRIANGLES.split()]
    edges = np.array([EDGE_LETTERS.index(letter) for word in words for letter in word])
    return EDGE_MIDPOINTS[edges.reshape(-1, 3)], np.repeat(np.arange(256), [len(word) // 3 for word in words])


def _inner_face_area(inside: np.ndarray) -> np.ndarray:
    """Return the inner part of square faces, (256,), from their corners, (256, 4), in the order 00, 01, 10, 11.

    Two inner corners on a diagonal are the one ambiguous face: Lorensen's table always keeps them apart.
    """
    diagonal = (inside[:, 0] == inside[:, 3]) & (inside[:, 1] == inside[:, 2]) & (inside.sum(axis=1) == 2)
    return np.where(diagonal, 0.25, np.array([0, 1 / 8, 1 / 2, 7 / 8, 1])[inside.sum(axis=1)])
