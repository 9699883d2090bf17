//! Images made from files of this machine.

use anyhow::ensure;
use tradewind_cluster::cluster::inside;
use tradewind_cluster::folder::Level;
use tradewind_cluster::image::Image;
use tradewind_cluster::inside::import;

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_program_of_this_machine_runs_in_a_pod_with_its_libraries() {
    inside(Level::Node, async |cluster| {
        let namespace = cluster.namespace("image").await?;
        let archive = cluster.folder.join("sed.tar");
        let image = Image::new("tradewind.test/sed:1").entrypoint(&["/bin/sed", "--version"]);
        image.linked_program("/usr/bin/sed".as_ref(), "/bin/sed")?.write(&archive)?;
        import(&cluster.folder, &archive)?;
        let pod = format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: sed, namespace: {namespace}}}
spec: {{restartPolicy: Never, containers: [{{name: main, image: \"tradewind.test/sed:1\"}}]}}
"
        );
        cluster.objects.apply(&pod).await?;
        let said = cluster.succeeded(&namespace, "sed").await?;
        ensure!(said.contains("GNU sed"), "{said}");
        Ok(())
    });
}
