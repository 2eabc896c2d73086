"""The help pages of the commands that take key=value."""

TRAIN_HELP = """
Fine-tune an image classifier on folders of photographs, evaluate it, export it and write a report.
The part of the network that stays frozen runs once per image; an epoch then takes seconds, on a CPU too.

Settings are written key=value and come in groups (the files in conf/ say what each key means):
  data        where the photographs lie, batches, augmentation    data=dogimages | data=sample
  model       the network, what of it trains, learning rate, optimizer
  trainer     every argument of lightning.Trainer
  cache       the features of the frozen part: whether, where, how large
  rules       what is watched while it trains: overfitting, vanishing gradients, waiting for data ...
  debugger    losses and gradients saved with smdebug, as in SageMaker (debugger.enabled=true)
  search      how many trials, and over which ranges (for dogbreed.tune and SageMaker's tuner)
  sagemaker   instances, role, bucket, limits (for launch/)
  schedule    schedule=finetune: the head first, then more of the network from that head (head_stage: the first stage)
  experiment  a set of settings: experiment=quickstart | modern | published | finetune | leaderboard

What people change most, with the defaults:
  data.root=data/dogImages     folder with train/ valid/ test/ and one folder per class in each, or with classes alone
  data.labels=null             CSV file with columns path and label, in place of the classes' folders
  data.split=0.8,0.1,0.1       shares of train, valid and test where the photographs are not split
  data.batch_size=512          --batch-size 512
  trainer.max_epochs=5         --epochs 5
  model.lr=0.0033              --lr 0.0033
  model.backbone=vgg16         --backbone vgg16; any torchvision classification network, efficientnet_lite0, timm/NAME
  model.weights=imagenet       --weights imagenet; or none, or the path of a .pth or .safetensors file
  model.trainable=head         --trainable head; block: also the last stage of the backbone; all
  data.augment=flip            none, flip, crop
  cache.mode=auto              auto, off, require
  seed=0                       --seed 0

Rules report once, with the value and what to do: rules.on_trigger=stop ends training then, rules.enabled=false silences
them. profile=true says where the time goes, in profile/report.html.

Examples:
  python -m dogbreed.train experiment=quickstart
  python -m dogbreed.train data.root=my_dogs model.backbone=resnet50 --lr 0.001 --epochs 10
  python -m dogbreed.train experiment=finetune trainer.devices=2 trainer.strategy=ddp trainer.precision=bf16-mixed

Flags do the same as key=value: --lr --batch-size --epochs --weight-decay --label-smoothing --optimizer
--schedule --backbone --weights --trainable --seed --experiment, and any key with __ for its dots,
as in --data__num_workers 2. Loggers: logger=csv, wandb, mlflow, tensorboard or [csv,wandb]; loggers.csv={} adds one.
Machines: trainer=gpu, cpu, mps or ddp.

Flags of Hydra:
  --cfg job        print the configuration instead of running (with --resolve: what ${...} stands for)
  --multirun, -m   one run for each of several values: -m model.lr=0.001,0.01
  --config-dir X   take groups and experiments from folder X too
  --info           how the configuration came about; --hydra-help lists the rest

Results lie in outputs/<date>/<time>/, or in output_dir=FOLDER: config.yaml, metrics.json, metrics.csv,
rules.json, checkpoints/, model/ (what is deployed), report.html, predictions.csv.

To go on with a run, with its settings: resume=last, or resume=outputs/<date>/<time>, or resume=CHECKPOINT;
trainer.max_epochs=N adds epochs. output_dir= of a finished run needs resume= or overwrite=true.
resume=auto: resume if a checkpoint exists, otherwise start from scratch.
"""

TUNE_HELP = """
Search hyperparameters on this machine. Optuna proposes the trials; those that share a batch size train side by side
on features that are computed once, so a search costs little more than one training.

What people change most, with the defaults:
  search.trials=20             settings to try, starting with your settings
  search.objective=val_loss    or val_acc with search.direction=maximize
  search.parallel=10           trials proposed at a time; the next ones learn from their results
  search.prune=true            stop a trial that is worse than the median at the same epoch
  search.sampler=tpe           tpe, random, qmc, gp, or grid: every combination of choices
  search.seeds=5               to train the three best and your settings again, and compare the winner with yours
  search.storage=FILE          processes and machines with the same FILE (or URL) share the trials
  trainer.max_epochs=5         epochs per trial
  search.space.model.lr.high=0.2                                            change a range
  'search.space.model.weight_decay={low: 1e-6, high: 1e-2, log: true}'      add a range
  '~search.space.data'                                                      take one out
  'search.backbones=[resnet18,{mobilenet_v2: my.pth}]'                      compare networks instead of settings

Examples:
  python -m dogbreed.tune data=sample model.weights=none search.trials=10
  python -m dogbreed.tune data.root=my_dogs model.backbone=resnet50 search.trials=50 --epochs 10
  python -m dogbreed.tune data.root=my_dogs experiment=leaderboard

All other settings and flags are those of python -m dogbreed.train (see its --help).

Results lie in outputs/<date>/<time>/, or in output_dir=FOLDER: trials.csv, best.yaml, winner.json,
search.png, study.db.
The same command with the same output_dir goes on with a search that was stopped.
"""

EVALUATE_HELP = """\
usage: python -m dogbreed.evaluate MODEL_DIR [key=value ...]

Measure an exported model (a run's model/, or the run's folder) on photographs, one folder per class.
Classes are matched by name; a number in front is ignored.

  data.root=FOLDER         holds test/<class>/, or the classes' folders themselves; default: what it was trained on
  data.labels=FILE         CSV file with columns path and label, in place of the classes' folders
  data.on_unknown=error    classes that the model does not know: error (all are named) or skip (reported)
  data.names={here: there} the model's name for classes that are called otherwise here
  split=test               test, valid or train, where data.root has these
  data.batch_size=64       images in one pass
  data.num_workers=auto    threads that decode; auto: one per core, 8 at most
  data.on_bad_image=skip   skip (reported) or error
  data.max_pixels=100e6    images with more pixels count as bad
  cache.mode=auto          features of the frozen part: auto (kept for the next time), require, or off (the images
                           take the path of an endpoint; figures agree to within 1e-4)
  cache.dir=FOLDER         default: the user's cache folder; cache.max_gb=20 is what all features may take
  output_dir=FOLDER        default: evaluation/<date>/<time>
  device=cpu               cpu, cuda, cuda:1, mps; default: a GPU where there is one

Examples:
  python -m dogbreed.evaluate outputs/2026-05-01/10-30-00/model
  python -m dogbreed.evaluate model/ data.root=my_dogs split=valid
  python -m dogbreed.evaluate model/ data.root=my_dogs data.on_unknown=skip 'data.names={boxer_dog: Boxer}'
  python -m dogbreed.evaluate model/ data.root=photos_of_friends output_dir=friends --batch-size 16

Writes metrics.json, predictions.csv and report.html.
"""
