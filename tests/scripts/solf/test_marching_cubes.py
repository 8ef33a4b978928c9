import scripts.solf.marching_cubes as table
from tools.marching_cubes_table import cell_triangles


def test_table_is_that_of_scikit_image():
    assert table._TRIANGLES.split() == [cell_triangles(configuration) for configuration in range(256)]
