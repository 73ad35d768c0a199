"""What pyproject.toml cannot say: the wheel carries conf/ as avrec/conf, so an installed avrec composes its configs."""

from setuptools import find_namespace_packages, find_packages, setup

CONF = ["avrec.conf", *(f"avrec.conf.{group}" for group in find_namespace_packages("conf"))]

setup(
    # Hydra looks for plugins in the namespace package hydra_plugins.
    packages=[*find_packages(include=["avrec", "avrec.*"]), "hydra_plugins.avrec_sweeper", *CONF],
    package_dir={"avrec.conf": "conf"},
    package_data={
        "avrec": [
            "py.typed",
            "__init__.pyi",
            "data/demo/domains.toml",
            "report/template.html",
            "report/script.js",
            "sweep/template.html",
        ],
        **dict.fromkeys(CONF, ["*.yaml"]),
    },
)
