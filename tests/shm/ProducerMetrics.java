/* Prints the metrics that Kafka's producer has once it has sent a record: group and name, a line each. */
import java.util.Properties;
import java.util.TreeSet;

import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.MetricName;
import org.apache.kafka.common.serialization.StringSerializer;

public class ProducerMetrics {
    public static void main(String[] arguments) throws Exception {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", arguments[0]);
        properties.put("enable.metrics.push", "false");
        TreeSet<String> lines = new TreeSet<>();
        try (KafkaProducer<String, String> producer =
                new KafkaProducer<>(properties, new StringSerializer(), new StringSerializer())) {
            producer.send(new ProducerRecord<>(arguments[1], "x")).get();
            for (MetricName name : producer.metrics().keySet()) lines.add(name.group() + " " + name.name());
        }
        for (String line : lines) System.out.println(line);
    }
}
