"""``python -m dgl_train`` is dgl-train, for launchers that start a module in several processes."""

from dgl_train.commands.train import train

if __name__ == "__main__":
    train(prog_name="dgl-train")
